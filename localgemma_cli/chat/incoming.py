"""Where the prompt comes from: the table of stdin rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from localgemma_cli.errors import UsageError
from localgemma_cli.text import TEXT_LIMIT, decode_text, normalize


@dataclass(frozen=True)
class Incoming:
    """The prompt, or None where the user is asked for it; and whether a chat follows."""

    prompt: str | None
    interactive: bool


def read_incoming(words: Sequence[str], stdin: TextIO, *, interactive: bool) -> Incoming:
    """Raises UsageError for a prompt that is empty, too large or no text."""
    typed = "" if list(words) == ["-"] else " ".join(words)
    if stdin.isatty() and list(words) != ["-"]:
        if not words:
            return Incoming(None, interactive=True)
        piped = ""
    else:
        piped = _read_text(stdin)
    prompt = "\n\n".join(part for part in (normalize(typed), piped) if part.strip())
    if not prompt:
        raise UsageError("The prompt is empty.", 'Give one: localgemma "Why is the sky blue?"')
    return Incoming(prompt, interactive)


def _read_text(stdin: TextIO) -> str:
    data = stdin.buffer.read(TEXT_LIMIT + 1)
    if len(data) > TEXT_LIMIT:
        raise UsageError(
            f"There is more than {TEXT_LIMIT >> 20} MiB on standard input.",
            "Send less: no Gemma's context holds that much text.",
        )
    return decode_text(data, "Standard input")
