"""Read the prompt and the system text: from the command line, standard input, a file or models.toml."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from localgemma_cli.errors import UsageError
from localgemma_cli.models.own_models import OwnModel
from localgemma_cli.text import TEXT_LIMIT, decode_text, normalize, read_text
from localgemma_cli.units import format_bytes


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
    words: Sequence[str], stdin: TextIO, *, interactive: bool, as_file: bool = False
) -> PromptInput:
    """Read the prompt; raises UsageError if it is empty, too large or not text."""
    if as_file:
        return _with_stdin_attached(words, stdin, interactive)
    typed = "" if list(words) == ["-"] else " ".join(words)
    if stdin.isatty() and list(words) != ["-"]:
        if not words:
            return PromptInput(None, interactive=True)
        piped = ""
    else:
        piped = _read_text(stdin)
    prompt = "\n\n".join(part for part in (normalize(typed), piped) if part.strip())
    if not prompt:
        raise UsageError("The prompt is empty.", 'Example: localgemma "Why is the sky blue?"')
    return PromptInput(prompt, interactive)


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


def _with_stdin_attached(words: Sequence[str], stdin: TextIO, interactive: bool) -> PromptInput:
    if list(words) == ["-"]:
        raise UsageError("Standard input cannot be both the prompt and a file.", "Remove one of the two -.")
    prompt = normalize(" ".join(words))
    chats = interactive or (stdin.isatty() and not words)
    if not prompt.strip() and not chats:
        raise UsageError("-f - needs a question.", 'Example: localgemma -f - "Summarize this."')
    text = _read_text(stdin)
    if not text.strip():
        raise UsageError("Standard input is empty.", "Remove -f -.")
    return PromptInput(prompt if prompt.strip() else None, chats, text)


def _read_text(stdin: TextIO) -> str:
    data = stdin.buffer.read(TEXT_LIMIT + 1)
    if len(data) > TEXT_LIMIT:
        raise UsageError(
            f"Standard input exceeds {format_bytes(TEXT_LIMIT)}.",
            "Send less text; no Gemma model has a context that large.",
        )
    return decode_text(data, "Standard input")
