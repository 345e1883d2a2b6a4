"""Format error messages, and colour the prefix of messages."""

import os
from collections.abc import Callable, Mapping
from typing import TextIO

from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.sanitize import Block, one_line

_COLOURS: Mapping[str, str] = {"localgemma:": "1;31", "warning:": "33"}  # red and yellow
_LONGEST = 600  # characters of a message or a hint


def format_error(error: LocalGemmaError, prefix: str = "") -> Block:
    """Two lines: what happened and what to do. Line ends in quoted text become spaces."""
    return Block(f"{prefix}{_shortened(one_line(error.message))}\n  {_shortened(one_line(error.hint))}")


def _shortened(text: str) -> str:
    """Start and end of a text that is too long: a quoted value can have thousands of characters."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} … {text[-half:]}"


def has_colour(stream: TextIO) -> bool:
    """Whether to write colours: to a terminal that supports them, without NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def colour_prefix(stream: TextIO) -> Callable[[str], str]:
    """A function for `Streams.say` that colours the prefix of a message: `localgemma:` or `warning:`."""

    def paint(text: str) -> str:
        prefix, blank, rest = text.partition(" ")
        code = _COLOURS.get(prefix) if has_colour(stream) else None
        return f"\x1b[{code}m{prefix}\x1b[0m{blank}{rest}" if code else text

    return paint
