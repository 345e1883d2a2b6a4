"""The Typer app, and `main`, the only place that turns errors into messages and exit codes."""

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

from localgemma_cli.command_options import SAVED_PROMPT, SPECS, defaults_from, options_of
from localgemma_cli.commands.chat import LITERAL, chat
from localgemma_cli.commands.help import ChatCommand, GroupedCommand, context_settings
from localgemma_cli.commands.light_values import convert_lightly
from localgemma_cli.commands.mistyped import COMMAND_NAMES, refuse_near_commands
from localgemma_cli.config import read_config
from localgemma_cli.environment import (
    LibraryStream,
    Streams,
    config_file,
    detach_from_terminal,
    fill_closed_descriptors,
    hide_library_output,
    keep_own_stderr,
    standard_streams,
    torchrun_rank,
)
from localgemma_cli.errors import (
    ExitCode,
    IncompleteAnswer,
    InterruptedAnswer,
    LocalGemmaError,
    as_user_error,
)
from localgemma_cli.option_spec import variable_of
from localgemma_cli.render.json import error_object, write_line
from localgemma_cli.render.messages import colour_prefix, format_error
from localgemma_cli.sanitize import Block

CHAT = "<chat>"  # the command that needs no name
_COMPLETION = "_LOCALGEMMA_COMPLETE"  # set by the shell's completion scripts that Typer writes
_CONFIGURED = (
    "chat",
    "plan",
    "prompt",
    "bench",
    "serve",
    "batch",
    "score",
)  # commands that config.toml sets defaults for
_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF)  # of a stream that cannot be written


class _ChatByDefault(TyperGroup):
    """Makes the chat the command of words that begin with no other command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing and not args:  # completing the first word
            return super().parse_args(ctx, args)
        ctx.meta[LITERAL] = "--" in args
        known = (*self.commands, "--install-completion", "--show-completion")
        return super().parse_args(ctx, args if args and args[0] in known else [CHAT, *args])

    def get_params(self, ctx: Any) -> list[Any]:
        return convert_lightly(super().get_params(ctx))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Completions of the first word: commands, or options of the chat."""
        if incomplete.startswith("-"):
            chat = self.commands[CHAT]
            inner = chat.make_context(CHAT, [], parent=ctx, resilient_parsing=True)
            return list(chat.shell_complete(inner, incomplete))
        return [each for each in super().shell_complete(ctx, incomplete) if each.value != CHAT]

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == CHAT else name, command, rest  # the name as help shows it


def build_app(commands: Iterable[str]) -> typer.Typer:
    """The chat and the named other commands, because importing all of them takes time."""
    app = typer.Typer(
        cls=_ChatByDefault,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=context_settings(),
    )  # plain help takes half the time
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
class ErrorStyle:
    """How this run prints errors."""

    json: bool
    verbose: bool


def main() -> None:
    rank = torchrun_rank(os.environ)
    if rank is not None and rank.index > 0:
        detach_from_terminal()
    fill_closed_descriptors()
    keep_own_stderr()
    streams = standard_streams()
    style = _error_style(sys.argv[1:], os.environ)
    hide_library_output(streams, verbose=style.verbose)
    code = run(sys.argv[1:], streams)
    _leave(streams, _close(streams, code, style))


def run(words: Sequence[str], streams: Streams) -> int:
    """The exit code of `localgemma WORDS`; prints errors on stderr."""
    style = _error_style(words, os.environ)
    try:
        return _dispatch(words)
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:  # the reader needs no more
        return ExitCode.OK
    except KeyboardInterrupt:
        error = InterruptedAnswer("Interrupted.", "Run it again.")
        return _report(error, style, streams) if style.json else error.exit_code  # a person pressed the keys
    except LocalGemmaError as error:
        return _report(error, style, streams)
    except OSError as error:
        if error.errno not in _UNWRITTEN or error.filename is not None:
            return _report(as_user_error(error), style, streams)
        _discard(streams)
        return _report(_not_written(error), style, streams)
    except Exception as error:  # the boundary: every other error is printed in the same way
        return _report(as_user_error(error), style, streams)


def _dispatch(words: Sequence[str]) -> int:
    if _COMPLETION in os.environ:
        return _complete()
    refuse_near_commands(words)
    first = words[0] if words else ""
    command: Any = typer.main.get_command(build_app(name for name in COMMAND_NAMES if name == first))
    keys = [spec.key for spec in options_of("chat").values()]
    # `localgemma config edit` must start with a file that it is there to correct.
    config = {} if first == "config" else read_config(config_file(), keys)
    maps = {"" if name == "chat" else name: defaults_from(config, name) for name in _CONFIGURED}
    context: Any = None
    try:
        with command.make_context("localgemma", _modern(words), default_map=maps) as context:
            return int(command.invoke(context) or 0)
    except TyperException as error:
        from localgemma_cli.commands.usage_errors import usage_error

        wrong = usage_error(error)
        _name_places(wrong, words, config, context)
        raise wrong from error
    except LocalGemmaError as error:
        _name_places(error, words, config, context)
        raise


def _complete() -> int:
    """Print completions for the shell."""
    from localgemma_cli.commands.shell_values import first_word, join_at_colons, offer_values

    join_at_colons(os.environ)
    first = first_word(os.environ)
    wanted = COMMAND_NAMES if first is None else [name for name in COMMAND_NAMES if name == first]
    command: Any = typer.main.get_command(build_app(wanted))
    offer_values(command)
    with redirect_stdout(cast(TextIO, LibraryStream(sys.stdout, shown=True))):  # made safe
        command.main(prog_name="localgemma")
    return ExitCode.OK


def _name_places(
    error: LocalGemmaError, words: Sequence[str], config: Mapping[str, object], context: Any
) -> None:
    """Let an error name the variable or the file that sets an option which nobody typed."""
    from localgemma_cli.commands.value_sources import ValueSources

    flags = {spec.key: [part for flag in spec.flags for part in flag.split("/")] for spec in SPECS.values()}
    files = [(config_file(), config)]
    if context is not None and (prompt := context.meta.get(SAVED_PROMPT)):
        files.insert(0, (prompt.path, prompt.options))
    ValueSources(_modern(words), os.environ, files, flags).name_places(error)


def _modern(words: Sequence[str]) -> list[str]:
    """Replace local-gemma's spellings, `--max_new_tokens` and `--silent`, with today's."""
    end = words.index("--") if "--" in words else len(words)
    options = [_modern_word(word) if word.startswith("--") else word for word in words[:end]]
    return [*options, *words[end:]]


def _modern_word(word: str) -> str:
    name, equals, value = word.partition("=")
    name = name.replace("_", "-")
    return ("--quiet" if name == "--silent" else name) + equals + value


def _error_style(words: Sequence[str], environ: Mapping[str, str]) -> ErrorStyle:
    """From the words alone, because an error may occur before they are parsed."""
    options = words[: words.index("--")] if "--" in words else words
    return ErrorStyle(
        _is_on({"--json", "--jsonl"}, options, environ), _is_on({"--verbose", "-v"}, options, environ)
    )


def _is_on(flags: Set[str], options: Sequence[str], environ: Mapping[str, str]) -> bool:
    variables = (variable_of(flag.lstrip("-")) for flag in flags if flag.startswith("--"))
    return bool(flags & set(options)) or any(
        environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in variables
    )


def _report(error: LocalGemmaError, style: ErrorStyle, streams: Streams) -> int:
    if style.verbose:
        streams.say(Block("".join(traceback.format_exception(error)).rstrip()))
    if style.json:
        with suppress(OSError):
            write_line(streams.stderr, error_object(error))
    else:
        if isinstance(error, IncompleteAnswer) and error.text:
            streams.say(Block(error.text))
        streams.say(format_error(error, "localgemma: "), colour_prefix(streams.stderr))
    return error.exit_code


def _close(streams: Streams, code: int, style: ErrorStyle) -> int:
    """Flush stdout; a closed pipe is a success, a full disk a failure."""
    try:
        streams.stdout.flush()
    except BrokenPipeError:
        _discard(streams)
    except OSError as error:
        _discard(streams)
        failure = _report(_not_written(error), style, streams)
        return code or failure
    return code


def _not_written(error: OSError) -> LocalGemmaError:
    if error.errno == errno.EBADF:
        return LocalGemmaError("Cannot write the output: stdout is closed.", "Remove >&-.")
    what = f"Cannot write the output: {error.strerror}."
    return LocalGemmaError(what, "Free some space, or write to another place.")


def _leave(streams: Streams, code: int) -> NoReturn:
    """Exit at once: torch is slow to shut down, and threads that still load or compile would abort."""
    with suppress(OSError):
        streams.stderr.flush()
    os._exit(code)


def _discard(streams: Streams) -> None:
    """Redirect stdout to the null device, so that Python's flush at exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), streams.stdout.fileno())
