"""`localgemma prompts`: save, list, show and remove prompts, which `--prompt NAME` uses."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from localgemma_cli.chat.prompt_input import read_system
from localgemma_cli.chat.standard_input import read_stdin
from localgemma_cli.command_options import options_of, takes_options, value_places
from localgemma_cli.commands.chat import refuse_conflicts
from localgemma_cli.commands.help import CommandGroup, GroupedCommand
from localgemma_cli.commands.removal import agree_to_remove
from localgemma_cli.environment import make_private, standard_streams
from localgemma_cli.errors import LocalGemmaError, SavingError, UsageError
from localgemma_cli.models.own_models import check_template
from localgemma_cli.options import Options
from localgemma_cli.prompt_template import parse_template
from localgemma_cli.render.json import write_line
from localgemma_cli.sampling import Sampling, sampling_for
from localgemma_cli.sanitize import one_line
from localgemma_cli.saved_prompts import (
    INPUT,
    SavedPrompt,
    check_fields,
    existing_path,
    format_prompt,
    parse_fields,
    prompt_names,
    prompt_path,
    read_prompt,
)
from localgemma_cli.sessions.export_file import write_new_file
from localgemma_cli.text import TEXT_LIMIT, normalize, read_text

prompts = typer.Typer(cls=CommandGroup, invoke_without_command=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The prompt's name.")]
# Options that belong to one call, or to one place of work.
_NOT_SAVED = ("saved_prompt", "file", "session", "continue_", "interactive", "yes", "no_stdin")
_PATHS = ("model", "adapter", "template", "assistant")  # values that may be paths
_SHOWN = 60  # characters of a prompt in a list


@prompts.callback()
def _prompts(ctx: typer.Context) -> None:
    """Save prompts for --prompt, and list, show and remove them. Default: list them.

    What a model receives is shown by another command: localgemma prompt

    Example: localgemma prompts save translate "Translate into {lang}: {input}"
    """
    if ctx.invoked_subcommand is None:
        list_prompts()


@prompts.command("save", cls=GroupedCommand)
@takes_options("chat", without=_NOT_SAVED)
def save(
    ctx: typer.Context,
    options: Options,
    name: Name,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="The prompt, or standard input for -. {input} is the words and the standard input of a call,"
            " {lang} a field of your own, {{ and }} are braces. Default: save only the options.",
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a prompt of this name.")] = False,
) -> None:
    """Save a prompt with options; --field sets a field's default.

    \b
    Examples:
      localgemma prompts save translate -m 9b "Translate into {lang}: {input}"
      localgemma -p translate --field lang=German "Good morning"
    """
    streams, path = standard_streams(), prompt_path(name)
    prompt = read_stdin(streams.stdin) if text == ["-"] else normalize(" ".join(text or []))
    kept = _typed_options(options, value_places(ctx))
    fields = parse_fields(options.field or [])
    template = parse_template(prompt, "The prompt")
    check_fields(template, fields, "The prompt")
    if not prompt.strip() and not kept:
        raise UsageError("Nothing to save.", f'Give a text: localgemma prompts save {name} "TEXT"')
    if not replace and path.exists():
        raise UsageError(f"The prompt {name} already exists.", "Add --replace, or choose another name.")
    try:
        make_private(path.parent)
    except OSError as error:
        raise SavingError(f"Cannot create {path.parent}: {error.strerror}.", "Check the folder.") from None
    write_new_file(path, format_prompt(prompt.strip() or None, fields, kept), replace=replace)
    given = [f"--field {each}=VALUE" for each in template.fields if each not in (*fields, INPUT)]
    given += ['"TEXT"'] if INPUT in template.fields else []
    streams.say(f"Saved. Use it with: {' '.join(['localgemma', '-p', name, *given])}")


@prompts.command("list", cls=GroupedCommand)
@takes_options("prompts list")
def list_prompts(options: Options) -> None:
    """List the saved prompts.

    Example: localgemma prompts list --json
    """
    streams, names = standard_streams(), prompt_names()
    if options.json:
        write_line(streams.stdout, {"prompts": [_row(_read(name)) for name in names]})
        return
    if not names:
        streams.say("There are no saved prompts yet.")
    for name in names:
        try:
            found = _read(name)
        except LocalGemmaError as error:  # the others are still listed
            streams.say(error.message)
            continue
        settings = ", ".join(f"{key} = {value}" for key, value in found.options.items())
        streams.show(f"{name:<20} {one_line(found.text or settings)[:_SHOWN]}")


@prompts.command("show", cls=GroupedCommand)
@takes_options("prompts show")
def show(options: Options, name: Name) -> None:
    """Print a prompt's file.

    Example: localgemma prompts show translate
    """
    streams, path = standard_streams(), existing_path(name)
    if options.json:
        write_line(streams.stdout, _row(_read(name)))
    else:
        streams.emit(read_text(path, TEXT_LIMIT))


@prompts.command("rm", cls=GroupedCommand)
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Remove these.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """Remove prompts for good; asks first.

    Example: localgemma prompts rm translate
    """
    streams = standard_streams()
    paths = {name: existing_path(name) for name in names}
    command = ["localgemma", "prompts", "rm", "--yes", *names]
    if not yes and not agree_to_remove(streams, "prompts", command, f"Remove {', '.join(paths)} for good?"):
        return
    for name, path in paths.items():
        try:
            path.unlink()
        except OSError as error:
            raise SavingError(f"Cannot remove {path}: {error.strerror}.", "Check the folder.") from None
        streams.show(f"removed {name}")


def _typed_options(options: Options, places: dict[str, str]) -> dict[str, object]:
    """The values on the command line, by their keys in config.toml; UsageError for a wrong one."""
    refuse_conflicts(options, places)
    sampling_for(options.mode, **options.values_for(Sampling))
    if options.template is not None:
        check_template(options.template)
    kept: dict[str, object] = {}
    for name, spec in options_of("chat").items():
        if places.get(name) == "COMMANDLINE" and name not in ("field", "system", "system_file"):
            kept[spec.key] = _plain(getattr(options, name), is_path=name in _PATHS)
    if any(places.get(name) == "COMMANDLINE" for name in ("system", "system_file")):
        kept["system"] = read_system(options.system, options.system_file)
    typed = [kept.get(key) for key in ("schema", "choice", "regex")]
    if any(each is not None for each in typed):
        from localgemma_cli.chat.constraint_input import read_constraint
        from localgemma_cli.constraint import JsonSchema

        constraint = read_constraint(*typed)  # type: ignore[arg-type]  # texts or None
        if isinstance(constraint, JsonSchema):
            kept["schema"] = constraint.schema  # not the name of its file
    return kept


def _plain(value: object, *, is_path: bool) -> object:
    """The value for TOML; a path that begins with a dot or names a template works in every folder."""
    if isinstance(value, Enum):
        return value.value
    if is_path and isinstance(value, str) and (value.startswith(".") or value.endswith(".jinja")):
        return str(Path(value).absolute())
    return value


def _read(name: str) -> SavedPrompt:
    return read_prompt(name, [spec.key for spec in options_of("chat").values()])


def _row(prompt: SavedPrompt) -> dict[str, object]:
    return {
        "name": prompt.name,
        "path": str(prompt.path),
        "prompt": prompt.text,
        "fields": dict(prompt.fields),
        "options": dict(prompt.options),
    }
