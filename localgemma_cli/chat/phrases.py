"""Small parts of notices: counts with their noun, and shortened quotations."""

import shlex

from localgemma_cli.sanitize import one_line

_LONGEST = 40  # characters


def format_count(count: int, noun: str) -> str:
    """A count with its noun: `1 turn`, `3 turns`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shorten(text: str) -> str:
    """The text in one line, cut at 40 characters."""
    line = one_line(text)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def resume_hint(session: str) -> str:
    """How to resume a saved conversation from the shell."""
    return f"resume with: localgemma --session {one_line(shlex.quote(session))}"
