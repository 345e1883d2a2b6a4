"""The options of each command: looked up in the table, and passed to Typer."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer

from localgemma_cli.errors import UsageError
from localgemma_cli.option_spec import OptionSpec
from localgemma_cli.options import Options
from localgemma_cli.saved_prompts import SavedPrompt, read_prompt

SAVED_PROMPT = "localgemma.saved-prompt"  # in a context's `meta`: what --prompt names
PLACES = ("DEFAULT", "DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")  # of an option's value, the weakest first
_EXCLUSIVE = (  # fields of `Options` of which a run uses one
    ("system", "system_file"),
    ("schema", "choice", "regex", "extract"),
    ("json", "jsonl"),
    ("session", "continue_"),
)
# An empty value of these is a mistake, often an unset variable of a script; elsewhere it is a value.
_FILES = ("file", "system_file", "api_key_file")
_NOT_EMPTY = ("model", "adapter", "revision", "assistant", "schema", "regex", *_FILES)
Result = TypeVar("Result")

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


def value_places(ctx: typer.Context) -> dict[str, str]:
    """Where each option gets its value: one of PLACES; DEFAULT_MAP is a saved prompt or config.toml."""
    return {name: str(getattr(ctx.get_parameter_source(name), "name", "DEFAULT")) for name in ctx.params}


def names_model(places: Mapping[str, str]) -> bool:
    """Whether the user named the model, which is consent to its download where nobody can be asked."""
    return any(places[name] != "DEFAULT" for name in ("model", "adapter"))


def drop_weaker(options: Options, places: Mapping[str, str]) -> Options:
    """Of options that exclude each other, keep only those from the strongest place."""
    weaker: dict[str, Any] = {}
    for group in _EXCLUSIVE:
        given = {
            name: PLACES.index(places.get(name, "DEFAULT"))
            for name in group
            if getattr(options, name) != default_of(name)
        }
        weaker |= {name: default_of(name) for name, place in given.items() if place < max(given.values())}
    return replace(options, **weaker)


def _saved_prompt_reader(command: str) -> Callable[[typer.Context, str | None], str | None]:
    """What Typer calls for --prompt, before it reads the options that the prompt sets defaults for."""

    def read(ctx: typer.Context, name: str | None) -> str | None:
        if name is not None:
            prompt: SavedPrompt = read_prompt(name, [spec.key for spec in options_of("chat").values()])
            own, weaker = defaults_from(prompt.options, command), dict(ctx.default_map or {})
            for group in _EXCLUSIVE:
                if own.keys() & set(group):
                    weaker = {key: value for key, value in weaker.items() if key not in group}
            ctx.default_map, ctx.meta[SAVED_PROMPT] = {**weaker, **own}, prompt
        return name

    return read


def _is_repeatable(name: str) -> bool:
    return any(get_origin(each) is list for each in get_args(Options.__dataclass_fields__[name].type))


def takes_options(
    command: str, without: Collection[str] = ()
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Let Typer see the options of `command` as parameters of a function that gets them as one `options`.

    `without`: fields of `Options` that the function does not have.
    """
    specs = {name: spec for name, spec in options_of(command).items() if name not in without}

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        own = [each for name, each in signature(function).parameters.items() if name != "options"]

        @wraps(function)
        def run(**values: Any) -> Result:
            options = Options(**{name: values.pop(name) for name in specs if name in values})
            _refuse_empty(options)
            return function(**values, options=options)

        parameters = [*own, *(_parameter(name, spec, command) for name, spec in specs.items())]
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what Typer reads
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _refuse_empty(options: Options) -> None:
    """UsageError for an option of `_NOT_EMPTY` whose value is empty."""
    for name in _NOT_EMPTY:
        value = getattr(options, name)
        if value == "" or (isinstance(value, list) and "" in value):
            flag = f"--{SPECS[name].key}"
            raise UsageError(f"{flag} is empty.", f"Give a value, or remove {flag}.")


def _parameter(name: str, spec: OptionSpec, command: str) -> Parameter:
    declared = Options.__dataclass_fields__[name]
    callback = _saved_prompt_reader(command) if spec.is_eager else None
    kind = Annotated[declared.type, spec.as_typer(callback)]  # type: ignore[name-defined]  # a value, read by Typer
    return Parameter(name, Parameter.KEYWORD_ONLY, default=declared.default, annotation=kind)
