"""`localgemma config`: where config.toml is, which options it sets, and an editor for it."""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import typer

from localgemma_cli.command_options import default_of, options_of, takes_options
from localgemma_cli.commands.help import CommandGroup, GroupedCommand
from localgemma_cli.config import read_config
from localgemma_cli.documents import failure_reason
from localgemma_cli.environment import (
    config_file,
    config_folder,
    make_private,
    private_opener,
    standard_streams,
)
from localgemma_cli.errors import LocalGemmaError, UsageError
from localgemma_cli.option_spec import OptionSpec
from localgemma_cli.options import Options
from localgemma_cli.redaction import MASK
from localgemma_cli.render.json import write_line
from localgemma_cli.sanitize import one_line

config = typer.Typer(cls=CommandGroup, invoke_without_command=True)
_HEAD = """\
# Defaults for the options of localgemma. To set one, remove the # before it and edit the value.
# A LOCALGEMMA_ variable overrides this file, and a flag overrides both.
"""


@config.callback()
def _config(ctx: typer.Context) -> None:
    """Show or edit config.toml, which sets defaults for options. Default: show.

    Example: localgemma config edit
    """
    if ctx.invoked_subcommand is None:
        show()


@config.command("path", cls=GroupedCommand)
def path() -> None:
    """Print the folder of config.toml, models.toml and presets.

    Example: ls "$(localgemma config path)"
    """
    standard_streams().emit(f"{config_folder()}\n")


@config.command("show", cls=GroupedCommand)
@takes_options("config show")
def show(options: Options) -> None:
    """Show the value of each option without a flag, and where it comes from.

    Example: localgemma config show --json
    """
    streams, specs = standard_streams(), options_of("chat")
    file = config_file()
    values = read_config(file, [spec.key for spec in specs.values()])
    rows = [_row(name, spec, values, os.environ) for name, spec in specs.items()]
    if options.json:
        write_line(streams.stdout, {"file": str(file), "options": rows})
        return
    for row in rows:
        value = row["usual"] if row["value"] is None else row["value"]
        place = f"  ({row['source']})" if row["source"] != "default" else ""
        streams.show(f"{row['option']:<20} {one_line(_shown(value))}{place}")


@config.command("edit", cls=GroupedCommand)
def edit() -> None:
    """Open config.toml in $VISUAL or $EDITOR; creates it, with every option as a comment, if it is missing.

    Example: EDITOR=nano localgemma config edit
    """
    file, specs = config_file(), options_of("chat")
    _create(file, specs)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise UsageError("No editor is set.", f"Set EDITOR, or edit the file yourself: {file}")
    try:
        code = subprocess.run([*shlex.split(editor), str(file)], check=False).returncode
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Cannot start the editor {editor!r}: {failure_reason(error)}.", "Correct VISUAL or EDITOR."
        ) from None
    if code:
        raise LocalGemmaError(f"The editor failed with exit code {code}.", f"The file is {file}.")
    read_config(file, [spec.key for spec in specs.values()])  # report a mistake now


def _row(
    name: str, spec: OptionSpec, values: Mapping[str, object], environ: Mapping[str, str]
) -> dict[str, object]:
    """`usual` says what happens without a value."""
    value, source = _plain(default_of(name)), "default"
    if spec.key in values:
        value, source = values[spec.key], "config.toml"
    if environ.get(spec.variable):
        value, source = environ[spec.variable], spec.variable
    if isinstance(value, str):
        value = re.sub(r"//[^/\s]*@", f"//{MASK}@", value)  # a password in a URL
    usual = spec.help.partition("Default: ")[2].rstrip(".") or "not set"
    return {"option": spec.key, "value": value, "source": source, "usual": usual}


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else value


def _create(file: Path, specs: Mapping[str, OptionSpec]) -> None:
    """A file of comments for this user alone; an existing one stays as it is."""
    try:
        make_private(file.parent)
        with open(file, "x", encoding="utf-8", opener=private_opener) as new:
            new.write(_template(specs))
    except FileExistsError:
        pass
    except OSError as error:
        raise UsageError(f"Cannot create {file}: {error.strerror}.", "Check the folder.") from None


def _template(specs: Mapping[str, OptionSpec]) -> str:
    parts = [f"\n# {spec.help}\n# {spec.key} = {_example(name, spec)}\n" for name, spec in specs.items()]
    return _HEAD + "".join(parts)


def _example(name: str, spec: OptionSpec) -> str:
    """The default as TOML writes it, or the placeholder of help."""
    value = _plain(default_of(name))
    if isinstance(value, bool) or spec.metavar is None:
        return "true" if value else "false"
    text = spec.metavar if value is None else str(value)
    return text if isinstance(value, int | float) else f'"{text}"'
