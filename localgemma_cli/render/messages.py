"""Messages of more than one line, and their colours."""

import os
from collections.abc import Callable, Mapping
from typing import TextIO

from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.sanitize import Block, one_line

_LEADS: Mapping[str, str] = {"localgemma:": "1;31", "warning:": "33"}  # red and yellow
_LONGEST = 600  # characters of a message or a hint


def error_text(error: LocalGemmaError, lead: str = "") -> Block:
    """What happened and, below it, what to do; whatever either quotes stays on its line."""
    return Block(f"{lead}{_within(one_line(error.message))}\n  {_within(one_line(error.hint))}")


def _within(text: str) -> str:
    """The same, or its start and its end: a value of thousands of characters hides what is wrong with it."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} … {text[-half:]}"


def has_colour(stream: TextIO) -> bool:
    """Whether colours are wanted there: a terminal that has them, and no NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def lead_in_colour(stream: TextIO) -> Callable[[str], str]:
    """For `Streams.say`: colours the word that says what kind of message it is."""

    def paint(text: str) -> str:
        lead, blank, rest = text.partition(" ")
        code = _LEADS.get(lead) if has_colour(stream) else None
        return f"\x1b[{code}m{lead}\x1b[0m{blank}{rest}" if code else text

    return paint
