"""The two handles of a conversation: its number, and a name, which cannot be a number."""

from localgemma_cli.errors import UsageError
from localgemma_cli.text import normalize

_OUT_OF_RANGE = 2**62  # larger than the number of any conversation


def parse_number(text: str) -> int | None:
    """The number; None if `text` is not one."""
    if not (text.isascii() and text.isdecimal()):
        return None
    digits = text.lstrip("0")
    return min(int(digits or "0"), _OUT_OF_RANGE) if len(digits) < 20 else _OUT_OF_RANGE


def validate_name(name: str) -> str:
    """The name as it is saved. Raises UsageError for a blank name and for a number."""
    name = normalize(name).strip()
    if not name:
        raise UsageError("A conversation's name cannot be blank.", "Choose a name with at least one letter.")
    if parse_number(name) is not None:
        raise UsageError(
            f"A conversation's name cannot be a number ({name[:20]}).",
            "Add a letter; every conversation already has its own number.",
        )
    return name
