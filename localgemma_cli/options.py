# ruff: noqa: RUF009  # `_option` returns a dataclass field
"""Every option, declared once: its flags, help, default and the commands that have it.

A value comes from its flag, else from its LOCALGEMMA_ variable, else from config.toml.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer

from localgemma_cli.sampling import Mode, OnOverflow

# The headings of help, in this order.
OPTION_GROUPS = ("Model", "Sampling", "Memory and speed", "Files and sessions", "Output")
_MODEL, _SAMPLING, _MEMORY, _FILES, _OUTPUT = OPTION_GROUPS

_CHAT = "chat"
_PLANS = ("chat", "plan", "bench")
_MODELS = ("chat", "plan", "prompt", "models pull")
_LISTS = ("models list", "history list", "history show", "history search", "config show")

Result = TypeVar("Result")


class LoadFormat(StrEnum):
    """Where a measured model's weights come from."""

    AUTO = "auto"
    DUMMY = "dummy"
    DUMMY_FILE = "dummy-file"


@dataclass(frozen=True)
class OptionSpec:
    """How one option is written; `local_only` options do not apply to a server's model."""

    flags: tuple[str, ...]
    help: str
    commands: tuple[str, ...]
    group: str | None
    metavar: str | None
    local_only: bool

    @property
    def key(self) -> str:
        """Its name in config.toml, and in messages after `--`."""
        return self.flags[0].split("/")[0].lstrip("-")

    @property
    def variable(self) -> str:
        return variable_of(self.key)

    def as_typer(self) -> Any:
        return typer.Option(
            *self.flags,
            help=self.help,
            metavar=self.metavar,
            envvar=self.variable,
            show_envvar=False,
            show_default=False,
            rich_help_panel=self.group,
        )


def variable_of(key: str) -> str:
    """The environment variable of an option: LOCALGEMMA_TOP_P for top-p."""
    return "LOCALGEMMA_" + key.upper().replace("-", "_")


def _option(
    *flags: str,
    help: str,
    to: str | tuple[str, ...] = _CHAT,
    default: object = None,
    group: str | None = None,
    metavar: str | None = None,
    local_only: bool = False,
) -> Any:
    commands = (to,) if isinstance(to, str) else to
    spec = OptionSpec(flags, help, commands, group, metavar, local_only)
    return field(default=default, metadata={"spec": spec})


@dataclass(frozen=True)
class Options:
    """What the user asked for; an option that a command lacks keeps its default."""

    model: str | None = _option(
        "--model",
        "-m",
        to=("chat", "plan", "prompt", "bench"),
        metavar="NAME",
        group=_MODEL,
        help="Use 2b, 7b, 9b, 27b, demo, another name of `models list`, a hub id or a local folder."
        " Default: 9b if it fits, else 2b.",
    )
    preset: str | None = _option(
        "--preset",
        to=("chat", "plan"),
        metavar="NAME",
        group=_MEMORY,
        local_only=True,
        help="Choose exact, speed, memory, memory_extreme or your own preset. Default: the best that fits.",
    )
    adapter: str | None = _option(
        "--adapter",
        to=("chat", "plan", "prompt"),
        metavar="NAME",
        group=_MODEL,
        local_only=True,
        help="Apply a LoRA or DoRA adapter: a hub id or a local folder. Its base model is used unless"
        " --model names one.",
    )
    revision: str | None = _option(
        "--revision",
        to=(*_MODELS, "bench"),
        metavar="REF",
        group=_MODEL,
        local_only=True,
        help="Use this branch, tag or commit on the hub. Default: main.",
    )
    template: str | None = _option(
        "--template",
        to=("chat", "prompt"),
        metavar="FORM",
        group=_MODEL,
        local_only=True,
        help="Format prompts as gemma, alpaca, alpaca-chat, raw (a base model continues your text) or by"
        " FILE.jinja. Default: auto, the format that the model's repository names.",
    )
    force: bool = _option(
        "--force",
        to=_MODELS,
        default=False,
        group=_MODEL,
        local_only=True,
        help="Try a model that is not a Gemma, without support.",
    )
    offline: bool = _option(
        "--offline",
        to=(*_MODELS, "bench"),
        default=False,
        group=_MODEL,
        local_only=True,
        help="Use only files on disk; never access the network.",
    )
    yes: bool = _option(
        "--yes",
        "-y",
        to=("chat", "bench"),
        default=False,
        group=_MODEL,
        help="Download missing files without asking.",
    )
    system: str | None = _option(
        "--system",
        "-s",
        to=("chat", "prompt"),
        metavar="TEXT",
        group=_SAMPLING,
        help="Set the system text.",
    )
    system_file: str | None = _option(
        "--system-file",
        to=("chat", "prompt"),
        metavar="PATH",
        group=_SAMPLING,
        help="Read the system text from a file.",
    )
    mode: Mode = _option(
        "--mode",
        to=("chat", "prompt"),
        default=Mode.CHAT,
        metavar="MODE",
        group=_SAMPLING,
        help="Sample for chat (temperature 0.7), factual (0.3, short answers) or creative (1.5 with min-p"
        " 0.08). Default: chat.",
    )
    temperature: float | None = _option(
        "--temperature",
        metavar="T",
        group=_SAMPLING,
        help="Set the randomness; 0 always picks the likeliest token. Default: as the mode does.",
    )
    top_p: float | None = _option(
        "--top-p",
        metavar="P",
        group=_SAMPLING,
        help="Sample from the likeliest tokens that reach probability P together.",
    )
    top_k: int | None = _option(
        "--top-k", metavar="K", group=_SAMPLING, help="Sample from the K likeliest tokens."
    )
    min_p: float | None = _option(
        "--min-p",
        metavar="P",
        group=_SAMPLING,
        help="Drop tokens less likely than P times the likeliest one.",
    )
    repetition_penalty: float | None = _option(
        "--repetition-penalty",
        metavar="X",
        group=_SAMPLING,
        help="Make repetition less likely with a value above 1. Default: as the mode does.",
    )
    seed: int | None = _option(
        "--seed",
        to=("chat", "bench"),
        metavar="N",
        group=_SAMPLING,
        help="Seed the sampling; the same seed gives the same answer.",
    )
    max_new_tokens: int | None = _option(
        "--max-new-tokens",
        metavar="N",
        group=_SAMPLING,
        help="Stop after N tokens. Default: fill the context.",
    )
    context: int | None = _option(
        "--context",
        to=_PLANS,
        metavar="N",
        group=_MEMORY,
        local_only=True,
        help="Set the context length in tokens. Default: the model's length.",
    )
    on_overflow: OnOverflow | None = _option(
        "--on-overflow",
        metavar="HOW",
        group=_MEMORY,
        help="Handle a full context: trim drops the oldest turns, summarize replaces them with a"
        " summary, error stops. Default: trim in a chat, else error.",
    )
    device: str | None = _option(
        "--device",
        to=_PLANS,
        metavar="DEV",
        group=_MEMORY,
        local_only=True,
        help="Run on cuda, mps or cpu. Default: the best.",
    )
    dtype: str | None = _option(
        "--dtype",
        to=_PLANS,
        metavar="TYPE",
        group=_MEMORY,
        local_only=True,
        help="Compute in bfloat16, float16 or float32. Default: as the preset does.",
    )
    quantization: str | None = _option(
        "--quantization",
        to=_PLANS,
        metavar="KIND",
        group=_MEMORY,
        local_only=True,
        help="Quantize weights to nf4, int4 or int8, or none. Default: as the preset does.",
    )
    attention: str | None = _option(
        "--attention",
        to=_PLANS,
        metavar="KIND",
        group=_MEMORY,
        local_only=True,
        help="Compute attention with eager, sdpa or flash_attention_2. Default: as the preset does.",
    )
    compile: bool | None = _option(
        "--compile/--no-compile",
        to=_PLANS,
        group=_MEMORY,
        local_only=True,
        help="Compile the decode step. Default: as the preset does.",
    )
    assistant: str | None = _option(
        "--assistant",
        to=("chat", "plan"),
        metavar="NAME",
        group=_MEMORY,
        local_only=True,
        help="Speed up decoding with guessed tokens that the model verifies: lookup (from earlier text), a"
        " small model of the same family (2b for 27b) or none. Default: as the preset does.",
    )
    device_memory: str | None = _option(
        "--device-memory",
        to=_PLANS,
        metavar="SIZE",
        group=_MEMORY,
        local_only=True,
        help="Use at most SIZE, such as 24GiB; for several GPUs 24GiB,16GiB. Default: what is free.",
    )
    host_memory: str | None = _option(
        "--host-memory",
        to=_PLANS,
        metavar="SIZE",
        group=_MEMORY,
        local_only=True,
        help="Use at most SIZE of host memory. Default: what is free.",
    )
    endpoint: str | None = _option(
        "--endpoint",
        metavar="URL",
        group=_MODEL,
        help="Chat with a server instead of loading a model; -m is the server's name for the model, and"
        " LOCALGEMMA_API_KEY holds the key.",
    )
    endpoint_dialect: str = _option(
        "--endpoint-dialect",
        default="auto",
        metavar="KIND",
        group=_MODEL,
        help="Use the API openai, or for RK3588 boards rkllama, rkllama-api, rkllm or rkllm-1.2. Default:"
        " auto, which asks the server.",
    )
    endpoint_timeout: float = _option(
        "--endpoint-timeout",
        default=120.0,
        metavar="SECONDS",
        group=_MODEL,
        help="Wait at most SECONDS for each piece of an answer. Default: 120.",
    )
    file: list[str] | None = _option(
        "--file", "-f", metavar="PATH", group=_FILES, help="Attach a text file; repeatable."
    )
    session: str | None = _option(
        "--session",
        metavar="NAME",
        group=_FILES,
        help="Resume the conversation saved as NAME, or start it.",
    )
    continue_: bool = _option(
        "--continue",
        "-c",
        default=False,
        group=_FILES,
        help="Resume the latest saved conversation, with its model.",
    )
    no_save: bool = _option(
        "--no-save", default=False, group=_FILES, help="Save nothing of this chat on disk."
    )
    json: bool = _option(
        "--json",
        to=("chat", "plan", "prompt", "bench", *_LISTS),
        default=False,
        group=_OUTPUT,
        help="Print one JSON object.",
    )
    jsonl: bool = _option(
        "--jsonl", default=False, group=_OUTPUT, help="Print JSON Lines while the answer arrives."
    )
    plain: bool = _option(
        "--plain", default=False, group=_OUTPUT, help="Show answers as plain text, not as Markdown."
    )
    sanitize: bool = _option(
        "--sanitize",
        default=False,
        group=_OUTPUT,
        help="Make control characters visible in a pipe too, as on a terminal.",
    )
    accessible: bool = _option(
        "--accessible",
        default=False,
        group=_OUTPUT,
        help="Support screen readers: no redrawing, no spinner, no toolbar.",
    )
    vi: bool = _option(
        "--vi/--no-vi",
        default=False,
        group=_OUTPUT,
        help="Edit the prompt with vi's keys. Default: no.",
    )
    interactive: bool = _option(
        "--interactive", "-i", default=False, group=_OUTPUT, help="Continue chatting after a piped prompt."
    )
    quiet: bool = _option(
        "--quiet",
        "-q",
        to=("chat", "bench", "models pull"),
        default=False,
        group=_OUTPUT,
        help="Print no progress and no notices on stderr.",
    )
    verbose: bool = _option(
        "--verbose",
        "-v",
        default=False,
        group=_OUTPUT,
        help="Print what happens and why, and tracebacks for errors.",
    )
    presets: list[str] | None = _option(
        "--preset",
        to="bench",
        metavar="NAME",
        help="Measure this preset; repeatable. Default: the best that fits.",
    )
    load_format: LoadFormat = _option(
        "--load-format",
        to="bench",
        default=LoadFormat.AUTO,
        metavar="KIND",
        help="Load the model's own weights (auto), random ones of its shape without a download (dummy), or"
        " random ones from a file, to time real loading (dummy-file). Default: auto.",
    )
    dummy_folder: str | None = _option(
        "--dummy-folder",
        to="bench",
        metavar="PATH",
        help="Keep the random weights here for reuse. Default: a temporary folder.",
    )
    prompt_tokens: list[int] | None = _option(
        "--prompt-tokens", to="bench", metavar="N", help="Send a prompt of N tokens; repeatable. Default: 64."
    )
    new_tokens: list[int] | None = _option(
        "--new-tokens", to="bench", metavar="N", help="Generate N tokens; repeatable. Default: 64."
    )
    chat_tokens: int | None = _option(
        "--chat-tokens",
        to="bench",
        metavar="N",
        help="Also time the first token of turn 6 in a chat of N tokens, beside a full prefill.",
    )
    repeats: int = _option(
        "--repeats", to="bench", default=3, metavar="N", help="Report the median of N runs. Default: 3."
    )
    reference: bool = _option(
        "--reference",
        to="bench",
        default=False,
        help="Measure plain transformers first, and compare its tokens.",
    )
    llama_cpp: list[str] | None = _option(
        "--llama-cpp",
        to="bench",
        metavar="FILE",
        help="Also measure llama.cpp on this GGUF file; repeatable.",
    )

    @property
    def resumes(self) -> bool:
        """Whether the user names a saved conversation."""
        return self.session is not None or self.continue_

    def values_for(self, noun: Any) -> dict[str, Any]:
        """The options that the dataclass `noun` has as fields, by name."""
        return {each.name: getattr(self, each.name) for each in fields(noun) if each.name in SPECS}


SPECS: Mapping[str, OptionSpec] = {each.name: each.metadata["spec"] for each in fields(Options)}


def options_of(command: str) -> dict[str, OptionSpec]:
    """What `command` takes, in the order of help, by the name of its field in `Options`."""
    return {name: spec for name, spec in SPECS.items() if command in spec.commands}


def default_of(name: str) -> object:
    """The value of an option that is set nowhere, by the name of its field in `Options`."""
    return Options.__dataclass_fields__[name].default


def defaults_from(config: Mapping[str, object], command: str) -> dict[str, object]:
    """The values of config.toml that `command` takes, by field; a repeatable option gets a list of one."""
    return {
        name: [config[spec.key]] if _is_repeatable(name) else config[spec.key]
        for name, spec in options_of(command).items()
        if spec.key in config
    }


def _is_repeatable(name: str) -> bool:
    return any(get_origin(each) is list for each in get_args(Options.__dataclass_fields__[name].type))


def takes_options(command: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Let Typer see the options of `command` as parameters of a function that gets them as one `options`."""
    specs = options_of(command)

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        own = [each for name, each in signature(function).parameters.items() if name != "options"]

        @wraps(function)
        def run(**values: Any) -> Result:
            options = Options(**{name: values.pop(name) for name in specs if name in values})
            return function(**values, options=options)

        parameters = [*own, *(_parameter(name, spec) for name, spec in specs.items())]
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what Typer reads
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameter(name: str, spec: OptionSpec) -> Parameter:
    declared = Options.__dataclass_fields__[name]
    kind = Annotated[declared.type, spec.as_typer()]  # type: ignore[name-defined]  # a value, read by Typer
    return Parameter(name, Parameter.KEYWORD_ONLY, default=declared.default, annotation=kind)
