"""Reasons of skipped tests, counted for the summary of a test run."""

import re
from collections import Counter
from collections.abc import Iterable

_MISSING_PACKAGE = re.compile(r"could not import '(\w+)")


def count_reasons(longreprs: Iterable[object]) -> Counter[str]:
    """How many tests were skipped for each reason; a skip's longrepr is (path, line, "Skipped: REASON")."""
    return Counter(_reason(each) for each in longreprs)


def _reason(longrepr: object) -> str:
    text = str(longrepr[2]) if isinstance(longrepr, (tuple, list)) else str(longrepr)
    text = text.removeprefix("Skipped: ")
    missing = _MISSING_PACKAGE.match(text)
    return f"needs the package {missing[1]}" if missing else text
