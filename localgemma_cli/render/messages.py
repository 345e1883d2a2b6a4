"""Messages of more than one line."""

from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.render.sanitize import Block, one_line


def error_text(error: LocalGemmaError, lead: str = "") -> Block:
    """What happened and, below it, what to do; whatever either quotes stays on its line."""
    return Block(f"{lead}{one_line(error.message)}\n  {one_line(error.hint)}")
