"""The Typer app, and `main`: the only place where errors become messages and exit codes."""

import errno
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn, TextIO, cast

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from localgemma_cli.commands.chat import LITERAL, chat
from localgemma_cli.commands.help import ChatCommand, GroupedCommand, context_settings
from localgemma_cli.commands.mistyped import COMMANDS, refuse_near_commands
from localgemma_cli.config import read_config
from localgemma_cli.environment import (
    LibraryStream,
    Streams,
    config_folder,
    detach_from_terminal,
    fill_closed_descriptors,
    hide_library_output,
    standard_streams,
    torchrun_rank,
)
from localgemma_cli.errors import ExitCode, InterruptedAnswer, LocalGemmaError, UsageError, as_user_error
from localgemma_cli.render.json import error_object, write_line
from localgemma_cli.render.messages import colour_prefix, format_error
from localgemma_cli.sanitize import Block, one_line

CHAT = "<chat>"  # the command that needs no name
_COMPLETION = "_LOCALGEMMA_COMPLETE"  # set by the shell's completion scripts that Typer writes
_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF)  # where a stream cannot be written


class _ChatByDefault(TyperGroup):
    """A first word that names no command belongs to the chat."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing and not args:  # completing the first word
            return super().parse_args(ctx, args)
        ctx.meta[LITERAL] = "--" in args
        known = (*self.commands, "--install-completion", "--show-completion")
        return super().parse_args(ctx, args if args and args[0] in known else [CHAT, *args])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """A first word may be a command, or an option of the chat."""
        if incomplete.startswith("-"):
            chat = self.commands[CHAT]
            inner = chat.make_context(CHAT, [], parent=ctx, resilient_parsing=True)
            return list(chat.shell_complete(inner, incomplete))
        return [each for each in super().shell_complete(ctx, incomplete) if each.value != CHAT]

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == CHAT else name, command, rest  # the name as help shows it


def build_app(commands: Iterable[str]) -> typer.Typer:
    """The chat, and those of the other commands that are wanted: each costs its imports."""
    app = typer.Typer(
        cls=_ChatByDefault,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=context_settings(),
    )  # plain help comes in half the time
    app.callback()(lambda: None)  # without one, Typer makes a lone command the whole program
    app.command(CHAT, cls=ChatCommand)(chat)
    for name in commands:
        command = getattr(import_module(f"localgemma_cli.commands.{name}"), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, cls=GroupedCommand)(command)
    return app


@dataclass(frozen=True)
class Manners:
    """How the errors of this run are told."""

    json: bool
    verbose: bool


def main() -> None:
    rank = torchrun_rank(os.environ)
    if rank is not None and rank.index > 0:
        detach_from_terminal()
    fill_closed_descriptors()
    streams = standard_streams()
    hide_library_output(streams, verbose=_manners(sys.argv[1:], os.environ).verbose)
    code = run(sys.argv[1:], streams)
    _leave(streams, _close(streams, code))


def run(words: Sequence[str], streams: Streams) -> int:
    """The exit code of `localgemma WORDS`; errors are told on stderr."""
    manners = _manners(words, os.environ)
    try:
        return _dispatch(words)
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:  # the reader has what it wanted
        return ExitCode.OK
    except KeyboardInterrupt:
        error = InterruptedAnswer("Interrupted.", "Run it again when you like.")
        return _tell(error, manners, streams) if manners.json else error.exit_code  # a person knows it
    except LocalGemmaError as error:
        return _tell(error, manners, streams)
    except OSError as error:
        if error.errno not in _UNWRITTEN or error.filename is not None:
            return _tell(as_user_error(error), manners, streams)
        _discard(streams)
        return _tell(_not_written(error), manners, streams)
    except Exception as error:  # the boundary: whatever else happens is told in the same way
        return _tell(as_user_error(error), manners, streams)


def _dispatch(words: Sequence[str]) -> int:
    if _COMPLETION in os.environ:
        return _complete()
    refuse_near_commands(words)
    command: Any = typer.main.get_command(build_app(name for name in COMMANDS if list(words[:1]) == [name]))
    names = {parameter.name for parameter in command.commands[CHAT].params} - {"prompt", "version"}
    defaults = read_config(config_folder() / "config.toml", names)
    several = {"preset": [defaults["preset"]]} if "preset" in defaults else {}
    maps = {"": defaults, "plan": defaults, "prompt": defaults, "bench": {**defaults, **several}}
    try:
        with command.make_context("localgemma", _modern(words), default_map=maps) as context:
            return int(command.invoke(context) or 0)
    except TyperException as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "localgemma").strip()
        wrong = UsageError(one_line(error.format_message()), f"{path} --help shows what there is.")
        _blame(wrong, words, defaults, command)
        raise wrong from error
    except LocalGemmaError as error:
        _blame(error, words, defaults, command)
        raise


def _complete() -> int:
    """Answer the shell."""
    from localgemma_cli.commands.shell_values import first_word, offer_values

    first = first_word(os.environ)
    wanted = COMMANDS if first is None else [name for name in COMMANDS if name == first]
    command: Any = typer.main.get_command(build_app(wanted))
    offer_values(command)
    with redirect_stdout(cast(TextIO, LibraryStream(sys.stdout, shown=True))):  # names from outside
        command.main(prog_name="localgemma")
    return ExitCode.OK


def _blame(
    error: LocalGemmaError, words: Sequence[str], defaults: Mapping[str, object], command: Any
) -> None:
    from localgemma_cli.commands.value_sources import ValueSources

    options = [
        *command.commands[CHAT].params,
        *(p for each in command.commands.values() for p in each.params),
    ]
    flags = {name.removeprefix("--"): p.opts for p in options for name in p.opts if name.startswith("--")}
    path = config_folder() / "config.toml"
    ValueSources(_modern(words), os.environ, defaults, path, flags).blame(error)


def _modern(words: Sequence[str]) -> list[str]:
    """The older local-gemma's spellings, `--max_new_tokens` and `--silent`, as they are now."""
    end = words.index("--") if "--" in words else len(words)
    options = [_modern_word(word) if word.startswith("--") else word for word in words[:end]]
    return [*options, *words[end:]]


def _modern_word(word: str) -> str:
    name, equals, value = word.partition("=")
    name = name.replace("_", "-")
    return ("--quiet" if name == "--silent" else name) + equals + value


def _manners(words: Sequence[str], environ: Mapping[str, str]) -> Manners:
    """From the words alone, because an error may come before they are parsed."""
    options = words[: words.index("--")] if "--" in words else words
    return Manners(
        _is_on({"--json", "--jsonl"}, options, environ), _is_on({"--verbose", "-v"}, options, environ)
    )


def _is_on(flags: Set[str], options: Sequence[str], environ: Mapping[str, str]) -> bool:
    variables = ("LOCALGEMMA_" + flag.lstrip("-").upper() for flag in flags if flag.startswith("--"))
    return bool(flags & set(options)) or any(
        environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in variables
    )


def _tell(error: LocalGemmaError, manners: Manners, streams: Streams) -> int:
    if manners.verbose:
        streams.say(Block("".join(traceback.format_exception(error)).rstrip()))
    if manners.json:
        with suppress(OSError):
            write_line(streams.stderr, error_object(error))
    else:
        streams.say(format_error(error, "localgemma: "), colour_prefix(streams.stderr))
    return error.exit_code


def _close(streams: Streams, code: int) -> int:
    """Flush what is left; a closed pipe is no failure, a full disk is one."""
    try:
        streams.stdout.flush()
    except BrokenPipeError:
        _discard(streams)
    except OSError as error:
        _discard(streams)
        streams.say(format_error(_not_written(error), "localgemma: "), colour_prefix(streams.stderr))
        return code or ExitCode.FAILURE
    return code


def _not_written(error: OSError) -> LocalGemmaError:
    if error.errno == errno.EBADF:
        return LocalGemmaError("The output cannot be written: stdout is closed.", "Leave >&- out.")
    what = f"The output cannot be written: {error.strerror}."
    return LocalGemmaError(what, "Free some space, or write elsewhere.")


def _leave(streams: Streams, code: int) -> NoReturn:
    """At once: torch takes its time to be taken down, and threads that still load or compile would abort."""
    with suppress(OSError):
        streams.stderr.flush()
    os._exit(code)


def _discard(streams: Streams) -> None:
    """Point stdout nowhere, so that Python's own flush at exit has nothing to complain about."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), streams.stdout.fileno())
