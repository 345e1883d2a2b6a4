"""A model's own files, read within bounds: ordinary files of a limited size, JSON of a limited depth.

What a parser would do with more differs by what it meets: a RecursionError, minutes, or all memory.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeGuard

from localgemma_cli.text import open_descriptor
from localgemma_cli.units import format_bytes

CONFIG_LIMIT = 4 << 20  # bytes; long lists of skipped modules take a tenth of it
_DEPTH = 48
_VALUES = 1_000_000  # of a whole file, counted by the characters that begin one
_DIGITS = 40  # of a whole number; the model_max_length of many tokenizers has 31
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SHOWN = 60  # characters of a value in a message


class Unreadable(ValueError):
    """What is wrong with a file, as the end of a sentence."""


def open_file(path: Path) -> BinaryIO:
    """To read; an OSError where it cannot be opened, Unreadable where it is no ordinary file."""
    descriptor = open_descriptor(path)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise Unreadable("it is a folder" if stat.S_ISDIR(mode) else "it is no ordinary file")
    return open(descriptor, "rb")


def read_bytes(path: Path, limit: int) -> bytes:
    """Raises as `open_file` does, and Unreadable where it is larger than `limit`."""
    with open_file(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Unreadable(f"it is larger than {format_bytes(limit)}")
    return data


def read_object(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, object]:
    """A file with one JSON object; raises as `read_bytes` does, and Unreadable for anything else."""
    return parse_object(read_bytes(path, limit))


def parse_object(data: bytes) -> dict[str, object]:
    value = parse_json(data)
    if not isinstance(value, dict):
        raise Unreadable("it holds no JSON object")
    return value


def parse_json(data: bytes) -> object:
    """Unreadable for what is no JSON, too deep, too much, or holds numbers or characters that are none."""
    if sum(map(data.count, (b"[", b"{", b","))) > _VALUES:
        raise Unreadable("it holds too many values")
    try:
        text = data.decode("utf-8")
        value: object = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_no_number)
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
        _require_characters(value)
    return value


def reason(error: Exception) -> str:
    """Why a file cannot be read, for a message that names it."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def shown(value: object) -> str:
    """A value for a message: short, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of too many digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def name_or(value: object, otherwise: str) -> str:
    """For a message: a name as it is, anything else as `shown`."""
    if not value:
        return otherwise
    return value if isinstance(value, str) and len(value) <= _SHOWN else shown(value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is one that arithmetic can be done with: no bool, no infinity, not beyond a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise Unreadable(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Unreadable(f"it holds {text[:_DIGITS]}, which is too large a number")
    return value


def _no_number(name: str) -> None:
    raise Unreadable(f"it holds {name}, which is no number")


def require_shallow(value: object) -> None:
    """Unreadable where lists and objects are nested deeper than any file needs, and than code can follow."""
    level = [value]
    for _ in range(_DEPTH):
        level = [child for each in level for child in _children(each)]
        if not level:
            return
    raise Unreadable("it is nested too deeply")


def _require_characters(value: object) -> None:
    pending = [value]
    while pending:
        each = pending.pop()
        pending.extend(_children(each))
        if isinstance(each, dict):
            pending.extend(each)
        if isinstance(each, str) and re.search("[\ud800-\udfff]", each):
            raise Unreadable("it holds half a character (a lone surrogate)")


def _children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
