"""The merges of a tokenizer.json by the bytes that the file has for them.

Parsing them as JSON takes most of the time that the file takes. As the tokenizers library writes them, each
merge is on lines of its own, which no string can contain.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

_KEY = b'"merges": ['
# A string as the library and `json.dumps` write it: any other way to write it is left to the parser of JSON.
_TEXT = rb'"[^"\\\n]*+(?:\\(?:["\\bfnrt]|u00(?:0[0-7bef]|1[0-9a-f]))[^"\\\n]*+)*+"'
_BETWEEN = ",\n        "


@dataclass(frozen=True)
class MergeRanks:
    """`ranks`: by what `key` makes of the two tokens that a merge joins."""

    ranks: Mapping[bytes, int] | Mapping[str, int]
    key: Callable[[str, str], Any]

    def rank(self, left: str, right: str) -> int | None:
        found: int | None = self.ranks.get(self.key(left, right))
        return found


@dataclass(frozen=True)
class _Layout:
    """How the library writes the merges of a file; `key` is what `merge` captures."""

    merge: re.Pattern[bytes]
    around: int  # bytes of a merge that are not captured, with the comma after it
    key: Callable[[str, str], bytes]


def _pair(left: str, right: str) -> bytes:
    return f"{_quote(left)}{_BETWEEN}{_quote(right)}".encode()


def _joined(left: str, right: str) -> bytes:
    return _quote(f"{left} {right}").encode()


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _layout(before: bytes, captured: bytes, after: bytes, key: Callable[[str, str], bytes]) -> _Layout:
    pattern = re.escape(before) + b"(" + captured + b")" + re.escape(after) + b",?"
    return _Layout(re.compile(pattern), len(before) + len(after) + 1, key)


_LAYOUTS = (
    _layout(b"\n      [\n        ", _TEXT + _BETWEEN.encode() + _TEXT, b"\n      ]", _pair),
    _layout(b"\n      ", _TEXT, b"", _joined),
)


def split_merges(data: bytes) -> tuple[bytes, MergeRanks] | None:
    """A tokenizer.json without its merges, and these; None where it is not written as the library does."""
    start, end = data.rfind(_KEY) + len(_KEY), data.rfind(b"\n    ]")
    if start < len(_KEY) or data[start - len(_KEY) - 1 : start - len(_KEY)] != b" ":  # else within a string
        return None
    merges = data[start:end]
    for layout in _LAYOUTS:
        found = layout.merge.findall(merges)
        if found and sum(map(len, found)) + len(found) * layout.around == len(merges) + 1:  # nothing is left
            ranks = MergeRanks(dict(zip(found, count())), layout.key)
            return data[:start] + data[end:], ranks
    return None


def rank_merges(merges: Sequence[Any]) -> MergeRanks:
    """The ranks of merges that are parsed already: `left right`, or pairs of tokens."""
    keys = merges if isinstance(merges[0], str) else map(" ".join, merges)
    return MergeRanks(dict(zip(keys, count(), strict=False)), lambda left, right: f"{left} {right}")
