# ruff: noqa: RUF009  # `declare_option` returns a dataclass field
"""Every option, declared once: its flags, help, default and the commands that have it.

A value comes from its flag, else from its LOCALGEMMA_ variable, else from config.toml.
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from localgemma_cli.option_spec import declare_option
from localgemma_cli.sampling import Mode, OnOverflow

# The headings of help, in this order.
OPTION_GROUPS = ("Model", "Sampling", "Memory and speed", "Files and sessions", "Output")
_MODEL, _SAMPLING, _MEMORY, _FILES, _OUTPUT = OPTION_GROUPS

_PLANS = ("chat", "plan", "bench", "serve", "batch", "score")
_MODELS = ("chat", "plan", "prompt", "models pull", "serve", "batch", "score")
_ANSWERS = ("chat", "serve", "batch")
_LISTS = (
    "models list",
    "history list",
    "history show",
    "history search",
    "config show",
    "prompts list",
    "prompts show",
    "ps",
)


class LoadFormat(StrEnum):
    """Where a measured model's weights come from."""

    AUTO = "auto"
    DUMMY = "dummy"
    DUMMY_FILE = "dummy-file"


class InputFormat(StrEnum):
    """How the rows of a batch are written."""

    AUTO = "auto"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"


@dataclass(frozen=True)
class Options:
    """What the user asked for; an option that a command lacks keeps its default."""

    model: str | None = declare_option(
        "--model",
        "-m",
        to=("chat", "plan", "prompt", "bench", "serve", "batch", "score"),
        metavar="NAME",
        group=_MODEL,
        help="Use 2b, 7b, 9b, 27b, demo, another name of `models list`, a hub id or a local folder."
        " Default: 9b if it fits, else 2b.",
    )
    preset: str | None = declare_option(
        "--preset",
        to=("chat", "plan", "serve", "batch", "score"),
        metavar="NAME",
        group=_MEMORY,
        local_only=True,
        help="Choose exact, speed, memory, memory_extreme or your own preset. Default: the best that fits.",
    )
    adapter: str | None = declare_option(
        "--adapter",
        to=("chat", "plan", "prompt", "serve", "batch", "score"),
        metavar="NAME",
        group=_MODEL,
        local_only=True,
        help="Apply a LoRA or DoRA adapter: a hub id or a local folder. Its base model is used unless"
        " --model names one.",
    )
    revision: str | None = declare_option(
        "--revision",
        to=(*_MODELS, "bench"),
        metavar="REF",
        group=_MODEL,
        local_only=True,
        help="Use this branch, tag or commit on the hub. Default: main.",
    )
    template: str | None = declare_option(
        "--template",
        to=("chat", "prompt", "serve", "batch"),
        metavar="FORM",
        group=_MODEL,
        local_only=True,
        help="Format prompts as gemma, alpaca, alpaca-chat, raw (a base model continues your text) or by"
        " FILE.jinja. Default: auto, the format that the model's repository names.",
    )
    force: bool = declare_option(
        "--force",
        to=_MODELS,
        default=False,
        group=_MODEL,
        local_only=True,
        help="Try a model that is not a Gemma, without support.",
    )
    offline: bool = declare_option(
        "--offline",
        to=(*_MODELS, "bench"),
        default=False,
        group=_MODEL,
        local_only=True,
        help="Use only files on disk; never access the network.",
    )
    yes: bool = declare_option(
        "--yes",
        "-y",
        to=("chat", "bench", "serve", "batch", "score"),
        default=False,
        group=_MODEL,
        help="Download missing files without asking.",
    )
    system: str | None = declare_option(
        "--system",
        "-s",
        to=("chat", "prompt", "batch"),
        metavar="TEXT",
        group=_SAMPLING,
        help="Set the system text.",
    )
    system_file: str | None = declare_option(
        "--system-file",
        to=("chat", "prompt", "batch"),
        metavar="PATH",
        group=_SAMPLING,
        help="Read the system text from a file.",
    )
    mode: Mode = declare_option(
        "--mode",
        to=("chat", "prompt", "batch"),
        default=Mode.CHAT,
        metavar="MODE",
        group=_SAMPLING,
        help="Sample for chat (temperature 0.7), factual (0.3, short answers) or creative (1.5 with min-p"
        " 0.08). Default: chat.",
    )
    temperature: float | None = declare_option(
        "--temperature",
        to=_ANSWERS,
        metavar="T",
        group=_SAMPLING,
        help="Set the randomness; 0 always picks the likeliest token. Default: as the mode does.",
    )
    top_p: float | None = declare_option(
        "--top-p",
        to=_ANSWERS,
        metavar="P",
        group=_SAMPLING,
        help="Sample from the likeliest tokens that reach probability P together.",
    )
    top_k: int | None = declare_option(
        "--top-k", to=_ANSWERS, metavar="K", group=_SAMPLING, help="Sample from the K likeliest tokens."
    )
    min_p: float | None = declare_option(
        "--min-p",
        to=_ANSWERS,
        metavar="P",
        group=_SAMPLING,
        help="Drop tokens less likely than P times the likeliest one.",
    )
    repetition_penalty: float | None = declare_option(
        "--repetition-penalty",
        to=_ANSWERS,
        metavar="X",
        group=_SAMPLING,
        help="Make repetition less likely with a value above 1. Default: as the mode does.",
    )
    seed: int | None = declare_option(
        "--seed",
        to=("chat", "bench", "serve", "batch"),
        metavar="N",
        group=_SAMPLING,
        help="Seed the sampling; the same seed gives the same answer.",
    )
    max_new_tokens: int | None = declare_option(
        "--max-new-tokens",
        to=_ANSWERS,
        metavar="N",
        group=_SAMPLING,
        help="Stop after N tokens. Default: fill the context.",
    )
    logprobs: int | None = declare_option(
        "--logprobs",
        to=("chat", "batch"),
        metavar="N",
        group=_OUTPUT,
        help="Add each token's log-probability to the JSON, and those of the N likeliest tokens there.",
    )
    context: int | None = declare_option(
        "--context",
        to=_PLANS,
        metavar="N",
        group=_MEMORY,
        local_only=True,
        help="Set the context length in tokens. Default: the model's length.",
    )
    on_overflow: OnOverflow | None = declare_option(
        "--on-overflow",
        metavar="HOW",
        group=_MEMORY,
        help="Handle a full context: trim drops the oldest turns, summarize replaces them with a"
        " summary, error stops. Default: trim in a chat, else error.",
    )
    device: str | None = declare_option(
        "--device",
        to=_PLANS,
        metavar="DEV",
        group=_MEMORY,
        local_only=True,
        help="Run on cuda, mps or cpu. Default: the best.",
    )
    dtype: str | None = declare_option(
        "--dtype",
        to=_PLANS,
        metavar="TYPE",
        group=_MEMORY,
        local_only=True,
        help="Compute in bfloat16, float16 or float32. Default: as the preset does.",
    )
    quantization: str | None = declare_option(
        "--quantization",
        to=_PLANS,
        metavar="KIND",
        group=_MEMORY,
        local_only=True,
        help="Quantize weights to nf4, int4 or int8, or none. Default: as the preset does.",
    )
    attention: str | None = declare_option(
        "--attention",
        to=_PLANS,
        metavar="KIND",
        group=_MEMORY,
        local_only=True,
        help="Compute attention with eager, sdpa or flash_attention_2. Default: as the preset does.",
    )
    compile: bool | None = declare_option(
        "--compile/--no-compile",
        to=_PLANS,
        group=_MEMORY,
        local_only=True,
        help="Compile the decode step. Default: as the preset does.",
    )
    assistant: str | None = declare_option(
        "--assistant",
        to=("chat", "plan", "serve", "batch", "score"),
        metavar="NAME",
        group=_MEMORY,
        local_only=True,
        help="Speed up decoding with guessed tokens that the model verifies: lookup (from earlier text), a"
        " small model of the same family (2b for 27b) or none. Default: as the preset does.",
    )
    device_memory: str | None = declare_option(
        "--device-memory",
        to=_PLANS,
        metavar="SIZE",
        group=_MEMORY,
        local_only=True,
        help="Use at most SIZE, such as 24GiB; for several GPUs 24GiB,16GiB. Default: what is free.",
    )
    host_memory: str | None = declare_option(
        "--host-memory",
        to=_PLANS,
        metavar="SIZE",
        group=_MEMORY,
        local_only=True,
        help="Use at most SIZE of host memory. Default: what is free.",
    )
    keep_alive: str | None = declare_option(
        "--keep-alive",
        metavar="TIME",
        group=_MEMORY,
        local_only=True,
        help="Keep the model loaded in a process of its own for TIME after each answer, for the next call:"
        " 90s, 10m or 2h. Default: off.",
    )
    endpoint: str | None = declare_option(
        "--endpoint",
        to=_ANSWERS,
        metavar="URL",
        group=_MODEL,
        help="Chat with a server instead of loading a model; -m is the server's name for the model, and"
        " LOCALGEMMA_API_KEY holds the key.",
    )
    endpoint_dialect: str = declare_option(
        "--endpoint-dialect",
        to=_ANSWERS,
        default="auto",
        metavar="KIND",
        group=_MODEL,
        help="Use the API openai, or for RK3588 boards rkllama, rkllama-api, rkllm or rkllm-1.2. Default:"
        " auto, which asks the server.",
    )
    endpoint_timeout: float = declare_option(
        "--endpoint-timeout",
        to=_ANSWERS,
        default=120.0,
        metavar="SECONDS",
        group=_MODEL,
        help="Wait at most SECONDS for each piece of an answer. Default: 120.",
    )
    file: list[str] | None = declare_option(
        "--file", "-f", metavar="PATH", group=_FILES, help="Attach a text file; repeatable."
    )
    saved_prompt: str | None = declare_option(
        "--prompt",
        "-p",
        to=("chat", "prompt"),
        metavar="NAME",
        group=_FILES,
        is_eager=True,
        help="Use the prompt saved as NAME, with its model and options.",
    )
    field: list[str] | None = declare_option(
        "--field",
        to=("chat", "prompt"),
        metavar="NAME=VALUE",
        group=_FILES,
        help="Set a field of the saved prompt; repeatable.",
    )
    no_stdin: bool = declare_option(
        "--no-stdin",
        "-n",
        to=("chat", "prompt"),
        default=False,
        group=_FILES,
        help="Do not read standard input beside a prompt, for example in a loop.",
    )
    output: str = declare_option(
        "--output",
        "-o",
        to="batch",
        default="-",
        metavar="OUT",
        group=_FILES,
        help="Write the results to this file, or to standard output for -. Default: -.",
    )
    resume: bool = declare_option(
        "--resume",
        to="batch",
        default=False,
        group=_FILES,
        help="Continue the results that an earlier run has written to OUT.",
    )
    input_format: InputFormat = declare_option(
        "--input-format",
        to="batch",
        default=InputFormat.AUTO,
        metavar="KIND",
        group=_FILES,
        help="Read jsonl, csv or tsv. Default: auto, by the end of the file's name, else jsonl.",
    )
    prompt_template: str | None = declare_option(
        "--prompt-template",
        to="batch",
        metavar="TEXT",
        group=_SAMPLING,
        help="Make each prompt from the fields of its row: 'Translate: {text}'; {{ and }} are braces.",
    )
    session: str | None = declare_option(
        "--session",
        metavar="NAME",
        group=_FILES,
        help="Resume the conversation saved as NAME, or start it.",
    )
    continue_: bool = declare_option(
        "--continue",
        "-c",
        default=False,
        group=_FILES,
        help="Resume the latest saved conversation, with its model.",
    )
    no_save: bool = declare_option(
        "--no-save", default=False, group=_FILES, help="Save nothing of this chat on disk."
    )
    json: bool = declare_option(
        "--json",
        to=("chat", "plan", "prompt", "bench", "score", *_LISTS),
        default=False,
        group=_OUTPUT,
        help="Print one JSON object.",
    )
    jsonl: bool = declare_option(
        "--jsonl", default=False, group=_OUTPUT, help="Print JSON Lines while the answer arrives."
    )
    schema: str | None = declare_option(
        "--schema",
        to=("chat", "batch"),
        metavar="FILE|JSON",
        group=_OUTPUT,
        help="Answer with JSON that is valid under this JSON Schema: a file, or JSON that begins with {.",
    )
    choice: str | None = declare_option(
        "--choice",
        to=("chat", "batch"),
        metavar="A,B,C",
        group=_OUTPUT,
        help="Answer with one of these words only: the likeliest, or with --temperature one that is drawn.",
    )
    regex: str | None = declare_option(
        "--regex",
        to=("chat", "batch"),
        metavar="RE",
        group=_OUTPUT,
        help="Answer with text that matches this regular expression from start to end.",
    )
    extract: bool = declare_option(
        "--extract",
        "-x",
        default=False,
        group=_OUTPUT,
        help="Print only the first fenced code block of the answer.",
    )
    plain: bool = declare_option(
        "--plain", default=False, group=_OUTPUT, help="Show answers as plain text, not as Markdown."
    )
    sanitize: bool = declare_option(
        "--sanitize",
        default=False,
        group=_OUTPUT,
        help="Make control characters visible in a pipe too, as on a terminal.",
    )
    accessible: bool = declare_option(
        "--accessible",
        to=("chat", "batch"),
        default=False,
        group=_OUTPUT,
        help="Support screen readers: no redrawing, no spinner, no toolbar.",
    )
    vi: bool = declare_option(
        "--vi/--no-vi",
        default=False,
        group=_OUTPUT,
        help="Edit the prompt with vi's keys. Default: no.",
    )
    interactive: bool = declare_option(
        "--interactive", "-i", default=False, group=_OUTPUT, help="Continue chatting after a piped prompt."
    )
    quiet: bool = declare_option(
        "--quiet",
        "-q",
        to=("chat", "bench", "models pull", "serve", "batch", "score"),
        default=False,
        group=_OUTPUT,
        help="Print no progress and no notices on stderr.",
    )
    verbose: bool = declare_option(
        "--verbose",
        "-v",
        to=_ANSWERS,
        default=False,
        group=_OUTPUT,
        help="Print what happens and why, and tracebacks for errors.",
    )
    host: str = declare_option(
        "--host",
        to="serve",
        default="127.0.0.1",
        metavar="ADDR",
        help="Listen on this address. An address that other machines reach needs a key. Default: 127.0.0.1.",
    )
    port: int = declare_option(
        "--port",
        to="serve",
        default=4366,
        metavar="N",
        help="Listen on this port; 0 means any free one. Default: 4366.",
    )
    socket: str | None = declare_option(
        "--socket",
        to="serve",
        metavar="PATH",
        help="Also listen on this Unix socket, which only you can use, or on none. Default:"
        " serve-PORT.sock in your runtime folder.",
    )
    api_key_file: str | None = declare_option(
        "--api-key-file",
        to="serve",
        metavar="PATH",
        help="Answer only clients that send the key in this file, or in the variable LOCALGEMMA_SERVE_KEY.",
    )
    queue: int = declare_option(
        "--queue",
        to="serve",
        default=32,
        metavar="N",
        help="Refuse requests with status 429 while N others wait. Default: 32.",
    )
    presets: list[str] | None = declare_option(
        "--preset",
        to="bench",
        metavar="NAME",
        help="Measure this preset; repeatable. Default: the best that fits.",
    )
    load_format: LoadFormat = declare_option(
        "--load-format",
        to="bench",
        default=LoadFormat.AUTO,
        metavar="KIND",
        help="Load the model's own weights (auto), random ones of its shape without a download (dummy), or"
        " random ones from a file, to time real loading (dummy-file). Default: auto.",
    )
    dummy_folder: str | None = declare_option(
        "--dummy-folder",
        to="bench",
        metavar="PATH",
        help="Keep the random weights here for reuse. Default: a temporary folder.",
    )
    prompt_tokens: list[int] | None = declare_option(
        "--prompt-tokens", to="bench", metavar="N", help="Send a prompt of N tokens; repeatable. Default: 64."
    )
    new_tokens: list[int] | None = declare_option(
        "--new-tokens", to="bench", metavar="N", help="Generate N tokens; repeatable. Default: 64."
    )
    chat_tokens: int | None = declare_option(
        "--chat-tokens",
        to="bench",
        metavar="N",
        help="Also time the first token of turn 6 in a chat of N tokens, beside a full prefill.",
    )
    repeats: int = declare_option(
        "--repeats", to="bench", default=3, metavar="N", help="Report the median of N runs. Default: 3."
    )
    reference: bool = declare_option(
        "--reference",
        to="bench",
        default=False,
        help="Measure plain transformers first, and compare its tokens.",
    )
    llama_cpp: list[str] | None = declare_option(
        "--llama-cpp",
        to="bench",
        metavar="FILE",
        help="Also measure llama.cpp on this GGUF file; repeatable.",
    )

    stride: int | None = declare_option(
        "--stride",
        to="score",
        metavar="N",
        help="Move the window of a text longer than the context by N tokens. Default: half the context.",
    )

    @property
    def resumes(self) -> bool:
        """Whether the user names a saved conversation."""
        return self.session is not None or self.continue_

    def values_for(self, noun: Any) -> dict[str, Any]:
        """The options that the dataclass `noun` has as fields, by name."""
        own = {each.name for each in fields(self)}
        return {each.name: getattr(self, each.name) for each in fields(noun) if each.name in own}
