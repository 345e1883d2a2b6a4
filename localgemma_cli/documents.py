"""Read a model's files within limits: regular files of a limited size, JSON of a limited depth.

Without limits a parser may raise RecursionError, run for minutes or fill the memory.
"""

import json
import math
import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, TypeGuard

from localgemma_cli.text import open_descriptor
from localgemma_cli.units import format_bytes

CONFIG_LIMIT = 4 << 20  # bytes; a config with long lists of skipped modules has a tenth of it
_DEPTH = 48
_VALUES = 1_000_000  # in a whole file, counted by the characters that start a value
_DIGITS = 40  # of an integer; the model_max_length of many tokenizers has 31
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SHOWN = 60  # characters of a value in a message
_CLOSE = 0.8  # difflib's ratio from which an unknown field is a misspelled one
_LONGEST_FIELD = 100  # characters; comparing longer names takes long, and no known one resembles them


class Unreadable(ValueError):
    """A file that cannot be used; its message says why, as the end of a sentence."""


def open_file(path: Path) -> BinaryIO:
    """Open a regular file to read. Raises OSError, and Unreadable for anything but a regular file."""
    descriptor = open_descriptor(path)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise Unreadable("it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")
    return open(descriptor, "rb")


def read_bounded_bytes(path: Path, limit: int) -> bytes:
    """Read a whole file. Raises as `open_file` does, and Unreadable above `limit` bytes."""
    with open_file(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Unreadable(f"it is larger than {format_bytes(limit)}")
    return data


def read_json_object(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, object]:
    """Read a file with one JSON object. Raises as `read_bounded_bytes` does, and Unreadable otherwise."""
    return parse_json_object(read_bounded_bytes(path, limit))


def parse_json_object(data: bytes) -> dict[str, object]:
    value = parse_bounded_json(data)
    if not isinstance(value, dict):
        raise Unreadable("it is not a JSON object")
    return value


def parse_bounded_json(data: bytes) -> object:
    """Parse JSON from outside.

    Raises Unreadable for invalid JSON, too many or too deeply nested values, NaN, and lone surrogates.
    """
    if sum(map(data.count, (b"[", b"{", b","))) > _VALUES:
        raise Unreadable("it contains too many values")
    try:
        text = data.decode("utf-8")
        value: object = json.loads(
            text, parse_int=_parse_int, parse_float=_parse_float, parse_constant=_reject_constant
        )
    except Unreadable:
        raise
    except UnicodeDecodeError as error:
        raise Unreadable(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except ValueError as error:
        raise Unreadable(f"it is not JSON: {error}") from None
    require_shallow(value)
    if _SURROGATE.search(data):
        _reject_surrogates(value)
    return value


def failure_reason(error: Exception) -> str:
    """Why reading a file failed, for a message that names the file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def format_value(value: object) -> str:
    """A value as it is quoted in a message, at most 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to format integers of more than 4,300 digits
        return "a number with too many digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def name_or(value: object, otherwise: str) -> str:
    """A name for a message; anything but a short string is quoted by `format_value`."""
    if not value:
        return otherwise
    return value if isinstance(value, str) and len(value) <= _SHOWN else format_value(value)


def intended_field(name: str, known: Collection[str]) -> str | None:
    """The known field that an unknown one misspells; None for a known one, and where none is alike."""
    if name in known or len(name) > _LONGEST_FIELD:
        return None
    import difflib

    return next(iter(difflib.get_close_matches(name, known, 1, _CLOSE)), None)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number that fits a float; a bool is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _parse_int(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise Unreadable(f"it contains a number with {len(digits)} digits")
    return int(digits)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Unreadable(f"it contains {text[:_DIGITS]}, which is too large")
    return value


def _reject_constant(name: str) -> None:
    raise Unreadable(f"it contains {name}, which is not a number")


def require_shallow(value: object) -> None:
    """Raise Unreadable for lists and objects that are nested more than 48 deep."""
    level = [value]
    for _ in range(_DEPTH):
        level = [child for each in level for child in _children(each)]
        if not level:
            return
    raise Unreadable("it is nested too deeply")


def _reject_surrogates(value: object) -> None:
    pending = [value]
    while pending:
        each = pending.pop()
        pending.extend(_children(each))
        if isinstance(each, dict):
            pending.extend(each)
        if isinstance(each, str) and re.search("[\ud800-\udfff]", each):
            raise Unreadable("it contains half a character (a lone surrogate)")


def _children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
