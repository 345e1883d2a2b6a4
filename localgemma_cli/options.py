"""The options that commands share, as Typer reads them: flag, then LOCALGEMMA_ variable, then config.toml."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from localgemma_cli.sampling import Mode, OnOverflow

# The headings of help, in this order.
GROUPS = ("Model", "Sampling", "Memory and speed", "Files and sessions", "Output")
_MODEL, _SAMPLING, _MEMORY, _FILES, _OUTPUT = GROUPS


def _option(*flags: str, help: str, group: str | None = None, **more: Any) -> Any:
    variable = "LOCALGEMMA_" + flags[0].split("/")[0].lstrip("-").upper().replace("-", "_")
    return typer.Option(*flags, help=help, envvar=variable, show_envvar=False, rich_help_panel=group, **more)


Model = Annotated[
    str | None,
    _option(
        "--model",
        "-m",
        metavar="NAME",
        group=_MODEL,
        help="2b, 7b, 9b, 27b, demo or another name of `models list`, a hub id or a local folder."
        " Default: 9b where it fits, else 2b.",
    ),
]
Preset = Annotated[
    str | None,
    _option(
        "--preset",
        metavar="NAME",
        group=_MEMORY,
        help="exact, speed, memory, memory_extreme, or your own. Default: the best that fits here.",
    ),
]
Adapter = Annotated[
    str | None,
    _option(
        "--adapter",
        metavar="NAME",
        group=_MODEL,
        help="A LoRA or DoRA adapter, a folder or a hub id; its base is found unless --model names one.",
    ),
]
Revision = Annotated[
    str | None,
    _option("--revision", metavar="REF", group=_MODEL, help="Branch, tag or commit on the hub."),
]
Template = Annotated[
    str | None,
    _option(
        "--template",
        metavar="FORM",
        group=_MODEL,
        help="How prompts are written: auto, gemma, alpaca, alpaca-chat, raw (a base model continues your"
        " text), or FILE.jinja. Default: what the model's repository says.",
    ),
]
Force = Annotated[
    bool, _option("--force", group=_MODEL, help="Try a model that is not a Gemma; nothing is promised.")
]
Offline = Annotated[
    bool, _option("--offline", group=_MODEL, help="Use only what is on disk; never ask the network.")
]
Yes = Annotated[
    bool, _option("--yes", "-y", group=_MODEL, help="Download what is not on disk without asking.")
]

System = Annotated[
    str | None, _option("--system", "-s", metavar="TEXT", group=_SAMPLING, help="System text.")
]
SystemFile = Annotated[
    str | None,
    _option("--system-file", metavar="PATH", group=_SAMPLING, help="Read the system text from a file."),
]
ModeOption = Annotated[
    Mode,
    _option(
        "--mode",
        metavar="MODE",
        group=_SAMPLING,
        help="chat: temperature 0.7. factual: 0.3, short answers. creative: 1.5 with min-p 0.08.",
    ),
]
Temperature = Annotated[
    float | None,
    _option("--temperature", metavar="T", group=_SAMPLING, help="0 takes the likeliest token every time."),
]
TopP = Annotated[
    float | None,
    _option(
        "--top-p", metavar="P", group=_SAMPLING, help="Keep the likeliest tokens up to this probability."
    ),
]
TopK = Annotated[
    int | None, _option("--top-k", metavar="K", group=_SAMPLING, help="Keep the K likeliest tokens.")
]
MinP = Annotated[
    float | None,
    _option("--min-p", metavar="P", group=_SAMPLING, help="Drop tokens below P times the likeliest one."),
]
RepetitionPenalty = Annotated[
    float | None,
    _option("--repetition-penalty", metavar="X", group=_SAMPLING, help="Above 1 makes repeats less likely."),
]
Seed = Annotated[
    int | None, _option("--seed", metavar="N", group=_SAMPLING, help="The same seed gives the same answer.")
]
MaxNewTokens = Annotated[
    int | None,
    _option(
        "--max-new-tokens",
        metavar="N",
        group=_SAMPLING,
        help="Longest answer, in tokens. Default: what the context has room for.",
    ),
]

Context = Annotated[
    int | None,
    _option("--context", metavar="N", group=_MEMORY, help="Context length in tokens. Default: the model's."),
]
Device = Annotated[
    str | None, _option("--device", metavar="DEV", group=_MEMORY, help="cuda, mps or cpu. Default: the best.")
]
Dtype = Annotated[
    str | None, _option("--dtype", metavar="TYPE", group=_MEMORY, help="bfloat16, float16 or float32.")
]
Quantization = Annotated[
    str | None, _option("--quantization", metavar="KIND", group=_MEMORY, help="none, nf4, int4 or int8.")
]
Attention = Annotated[
    str | None,
    _option("--attention", metavar="KIND", group=_MEMORY, help="eager, sdpa or flash_attention_2."),
]
Compile = Annotated[
    bool | None, _option("--compile/--no-compile", group=_MEMORY, help="Compile the decode step, or do not.")
]
Assistant = Annotated[
    str | None,
    _option(
        "--assistant",
        metavar="NAME",
        group=_MEMORY,
        help="Guess tokens and check them, for speed: lookup, from what was said before; or a small model"
        " of the same family, such as 2b for 27b; none.",
    ),
]
DeviceMemory = Annotated[
    str | None,
    _option(
        "--device-memory",
        metavar="SIZE",
        group=_MEMORY,
        help="Use at most this much, e.g. 24GiB; of several GPUs, as 24GiB,16GiB.",
    ),
]
HostMemory = Annotated[
    str | None,
    _option("--host-memory", metavar="SIZE", group=_MEMORY, help="Use at most this much host memory."),
]

EndpointUrl = Annotated[
    str | None,
    _option(
        "--endpoint",
        metavar="URL",
        group=_MODEL,
        help="Chat with a server instead of loading; -m is its name for the model. The key, where it wants"
        " one, is read from LOCALGEMMA_API_KEY.",
    ),
]
EndpointDialect = Annotated[
    str,
    _option(
        "--endpoint-dialect",
        metavar="KIND",
        group=_MODEL,
        help="auto asks the server; openai; for RK3588 boards rkllama, rkllama-api, rkllm, rkllm-1.2.",
    ),
]
EndpointTimeout = Annotated[
    float,
    _option(
        "--endpoint-timeout",
        metavar="SECONDS",
        group=_MODEL,
        help="How long a server may take for each piece of an answer.",
    ),
]

Overflow = Annotated[
    OnOverflow | None,
    _option(
        "--on-overflow",
        metavar="HOW",
        group=_MEMORY,
        help="When the context is full: trim drops the oldest turns, summarize puts a summary in"
        " their place, error stops. Default: trim in a chat.",
    ),
]

File = Annotated[
    list[str] | None,
    _option(
        "--file", "-f", metavar="PATH", group=_FILES, help="Attach a text file; may be given several times."
    ),
]
Session = Annotated[
    str | None,
    _option(
        "--session",
        metavar="NAME",
        group=_FILES,
        help="Go on with the saved conversation of that name, or begin it.",
    ),
]
Continue = Annotated[
    bool,
    _option(
        "--continue", "-c", group=_FILES, help="Go on with the latest saved conversation, and its model."
    ),
]
NoSave = Annotated[bool, _option("--no-save", group=_FILES, help="Keep nothing of this chat on disk.")]
Plain = Annotated[
    bool, _option("--plain", group=_OUTPUT, help="Show answers as the model writes them, not as Markdown.")
]
Sanitize = Annotated[
    bool,
    _option(
        "--sanitize", group=_OUTPUT, help="Make control characters visible in a pipe too, as on a terminal."
    ),
]
Accessible = Annotated[
    bool,
    _option(
        "--accessible", group=_OUTPUT, help="For screen readers: nothing is drawn again, no spinner, no bar."
    ),
]
Vi = Annotated[bool, _option("--vi/--no-vi", group=_OUTPUT, help="Edit the prompt with vi's keys.")]

Json = Annotated[bool, _option("--json", group=_OUTPUT, help="Print one JSON object.")]
JsonLines = Annotated[bool, _option("--jsonl", group=_OUTPUT, help="Print JSON Lines as the answer comes.")]
Interactive = Annotated[
    bool,
    _option("--interactive", "-i", group=_OUTPUT, help="Go on chatting after what came through the pipe."),
]
Quiet = Annotated[bool, _option("--quiet", "-q", group=_OUTPUT, help="No progress and no notices on stderr.")]
Verbose = Annotated[
    bool, _option("--verbose", "-v", group=_OUTPUT, help="Say what is done and why; tracebacks for errors.")
]

_BENCH = "What is measured"


class LoadFormat(StrEnum):
    """Where a measured model's weights come from."""

    AUTO = "auto"
    DUMMY = "dummy"
    DUMMY_FILE = "dummy-file"


LoadFormatOption = Annotated[
    LoadFormat,
    _option(
        "--load-format",
        metavar="KIND",
        help="auto: the model's own weights. dummy: random ones of its shape, no download; made on the"
        " device, on a CPU in a temporary file. dummy-file: always in a file, so that loading is real.",
    ),
]
DummyFolder = Annotated[
    str | None,
    _option("--dummy-folder", metavar="PATH", help="Keep the random weights here, to use again."),
]
Presets = Annotated[
    list[str] | None,
    _option("--preset", metavar="NAME", help="A preset; again for a row each."),
]
PromptTokens = Annotated[
    list[int] | None,
    _option("--prompt-tokens", metavar="N", help="Length of the prompt; again for more."),
]
NewTokens = Annotated[
    list[int] | None,
    _option("--new-tokens", metavar="N", help="Length of the answer; again for more."),
]
ChatTokens = Annotated[
    int | None,
    _option(
        "--chat-tokens",
        metavar="N",
        help="Also the first token of turn 6 in a chat of this length, beside a full prefill.",
    ),
]
Repeats = Annotated[int, _option("--repeats", metavar="N", help="Runs to take the median of.")]
Reference = Annotated[
    bool, _option("--reference", help="Plain transformers as the first row; compares tokens.")
]
LlamaCpp = Annotated[
    list[str] | None,
    _option("--llama-cpp", metavar="FILE", help="Also llama.cpp on this GGUF file; again for more."),
]
