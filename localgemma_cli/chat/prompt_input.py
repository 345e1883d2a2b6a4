"""Read the prompt and the system text: from the command line, standard input, a file or models.toml."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from localgemma_cli.chat.standard_input import read_stdin, read_stdin_beside_words
from localgemma_cli.environment import Streams
from localgemma_cli.errors import UsageError
from localgemma_cli.models.own_models import OwnModel
from localgemma_cli.saved_prompts import FilledPrompt
from localgemma_cli.text import normalize, read_text


@dataclass(frozen=True)
class PromptInput:
    """The prompt, None if the chat asks for it; and whether a chat follows."""

    prompt: str | None
    interactive: bool
    attached: str | None = None  # standard input, if it is attached as a file


def is_stdin(path: str) -> bool:
    """Whether a path names standard input."""
    return path in ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


def read_prompt_input(
    words: Sequence[str],
    streams: Streams,
    saved: FilledPrompt | None = None,
    *,
    interactive: bool = False,
    as_file: bool = False,
    no_stdin: bool = False,
    quiet: bool = False,
) -> PromptInput:
    """Read the prompt, or the input of a saved one; UsageError if it is empty, too large or not text.

    `no_stdin` keeps standard input unread unless the words or a file name it.
    """
    if as_file:
        return _with_stdin_attached(words, streams, saved, interactive)
    is_complete = saved is not None and not saved.takes_input
    if not words and not is_complete:
        if saved is not None and (no_stdin or streams.stdin.isatty()):
            raise _input_missing(saved)
        if streams.stdin.isatty():
            return PromptInput(None, interactive=True)
        if no_stdin:
            raise UsageError("--no-stdin needs a prompt.", 'Give one: localgemma -n "Why is the sky blue?"')
    if list(words) == ["-"] or not (words or is_complete):
        text = read_stdin(streams.stdin)
    else:
        piped = "" if no_stdin else read_stdin_beside_words(streams.stdin, _noting(streams, quiet))
        text = "\n\n".join(part for part in (normalize(" ".join(words)), piped) if part.strip())
    if not text.strip() and not is_complete:
        if saved is not None:
            raise _input_missing(saved)
        raise UsageError("The prompt is empty.", 'Example: localgemma "Why is the sky blue?"')
    return PromptInput(saved.with_input(text) if saved else text, interactive)


def _noting(streams: Streams, quiet: bool) -> Callable[[str], None]:
    return lambda text: None if quiet else streams.say(f"note: {text}")


def _input_missing(saved: FilledPrompt) -> UsageError:
    return UsageError(
        f"The prompt {saved.name} needs an input.",
        f'Give it as words or on standard input: localgemma -p {saved.name} "…"',
    )


def read_system(system: str | None, path: str | None, own: OwnModel | None = None) -> str | None:
    """The text of --system or of the --system-file at `path`, else the system text in models.toml.

    UsageError for both or for what is not text, NotFoundError for an unreadable file.
    """
    if path is None:
        system = own.system if system is None and own else system
        return system if system is None else normalize(system)
    if system is not None:
        raise UsageError("--system and --system-file cannot be used together.", "Remove one of them.")
    return read_text(path, pipes=True)


def _with_stdin_attached(
    words: Sequence[str], streams: Streams, saved: FilledPrompt | None, interactive: bool
) -> PromptInput:
    if list(words) == ["-"]:
        raise UsageError("Standard input cannot be both the prompt and a file.", "Remove one of the two -.")
    prompt = normalize(" ".join(words))
    if saved is not None:
        if saved.takes_input and not prompt.strip():
            raise _input_missing(saved)
        prompt = saved.with_input(prompt)
    chats = interactive or (streams.stdin.isatty() and not words and saved is None)
    if not prompt.strip() and not chats:
        raise UsageError("-f - needs a question.", 'Example: localgemma -f - "Summarize this."')
    text = read_stdin(streams.stdin)
    if not text.strip():
        raise UsageError("Standard input is empty.", "Remove -f -.")
    return PromptInput(prompt if prompt.strip() else None, chats, text)
