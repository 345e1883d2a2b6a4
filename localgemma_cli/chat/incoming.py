"""Where the prompt comes from: the table of stdin rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from localgemma_cli.errors import UsageError

STDIN_LIMIT = 4 * 2**20  # bytes; over a hundred times what an 8192-token context can hold


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
    prompt = "\n\n".join(part for part in (_text(typed), piped) if part.strip())
    if not prompt:
        raise UsageError("The prompt is empty.", 'Give one: localgemma "Why is the sky blue?"')
    return Incoming(prompt, interactive)


def _read_text(stdin: TextIO) -> str:
    data = stdin.buffer.read(STDIN_LIMIT + 1)
    if len(data) > STDIN_LIMIT:
        raise UsageError(
            f"There is more than {STDIN_LIMIT >> 20} MiB on standard input.",
            "Send less: no Gemma's context holds that much text.",
        )
    if b"\0" in data:
        raise UsageError("Standard input is binary.", "Send text; convert the file first.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"Standard input is not UTF-8 text: byte {error.start} begins no character.",
            "Convert it first, for example with: iconv -f latin1 -t utf-8",
        ) from None


def _text(words: str) -> str:
    """Command-line words as text; bytes that are no UTF-8 reach Python as lone surrogates."""
    try:
        words.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("The prompt is not UTF-8 text.", "Check the terminal's encoding.") from None
    return words
