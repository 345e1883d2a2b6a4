"""How a session is named: by a number, which it always has, or by a name, which is never a number."""

from localgemma_cli.errors import UsageError
from localgemma_cli.text import normalize

_NONE = 2**62  # no session gets so far


def as_number(wanted: str) -> int | None:
    """None for what is no number."""
    if not (wanted.isascii() and wanted.isdecimal()):
        return None
    digits = wanted.lstrip("0")
    return min(int(digits or "0"), _NONE) if len(digits) < 20 else _NONE


def checked_name(name: str) -> str:
    """As it is saved; UsageError for one that would be taken for a number, or is blank."""
    name = normalize(name).strip()
    if not name:
        raise UsageError("A conversation's name cannot be blank.", "Give a word.")
    if as_number(name) is not None:
        raise UsageError(
            f"A conversation's name cannot be a number ({name[:20]}).",
            "Each conversation has a number of its own already; add a letter.",
        )
    return name
