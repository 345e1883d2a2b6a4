"""Messages of more than one line."""

from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.render.sanitize import Block, one_line

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
