"""The header of a GGUF file: its values, its tensors and its vocabulary, read without any package.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import os
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import BinaryIO

from localgemma_cli.documents import failure_reason, format_value, open_file
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.architecture import StoredFormat

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K"}
_TYPES |= {12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 30: "BF16"}
_UNQUANTIZED = {0, 1, 30}
_FILE_TYPES = {  # of general.file_type: llama_ftype in llama.cpp's llama.h
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"},
    **{12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K"},
    **{19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL"},
    **{26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16"},
}
# Limits beyond any real header: they bound the time and memory that a damaged file can cost.
_MOST_TENSORS, _MOST_PAIRS, _MOST_ITEMS = 100_000, 10_000, 20_000_000
_LONGEST_NAME, _MOST_TEXT = 65_535, 16 << 20  # bytes
_MOST_DIMENSIONS, _MOST_ALIGNMENT = 4, 1 << 20
_LENGTH = struct.Struct("<Q")  # of a text, in bytes
_PIECE = 1 << 20  # bytes
_SHORT = 1024  # items; a list of numbers up to this length is kept, such as one per layer
_FIRST_PIECE = re.compile(r"(.+-)00001(-of-(\d{5})\.gguf)", re.IGNORECASE)


class _Truncated(ValueError):
    """The file ends before its header does."""


@dataclass(frozen=True)
class GgufTensor:
    """The place of one tensor in the file `path`: `type` by ggml's number, `shape` in PyTorch's order."""

    path: Path
    type: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class GgufArray:
    """A list that was skipped: `length` items of a GGUF type, from `start` to `end` in the file, in bytes."""

    type: int
    length: int
    start: int
    end: int


@dataclass(frozen=True)
class Gguf:
    """A header: its values by key, and its tensors by name; `stored_bytes`: the size of those."""

    path: Path
    values: Mapping[str, object]
    tensors: Mapping[str, GgufTensor]
    stored_bytes: int

    @property
    def stored(self) -> StoredFormat:
        """The file's own name for its format, else the type of most weights.

        NotFoundError without weights.
        """
        if not self.tensors:
            raise NotFoundError(
                f"{self.path} contains no weights.",
                "Use the file with the model, not the one with its vocabulary.",
            )
        weights = Counter[int]()
        for tensor in self.tensors.values():
            weights[tensor.type] += prod(tensor.shape)
        kind, named = weights.most_common(1)[0][0], self.values.get("general.file_type")
        detail = _FILE_TYPES.get(named) if isinstance(named, int) else None
        return StoredFormat(
            "gguf",
            detail=detail or _TYPES.get(kind, f"type {kind}"),
            bytes=self.stored_bytes,
            is_quantized=not weights.keys() <= _UNQUANTIZED,
        )

    def texts(self, key: str) -> list[str]:
        """A list of texts; bytes that are not UTF-8 become U+FFFD. ValueError if the key has none."""
        array = self.values.get(key)
        if not isinstance(array, GgufArray) or array.type != _STRING:
            raise ValueError(f"{key} is missing, or is not a list of texts")
        data = self._read(array)
        found, at, length_at = [], 0, _LENGTH.unpack_from
        for _ in range(array.length):
            start = at + 8
            at = start + length_at(data, at)[0]
            found.append(data[start:at].decode("utf-8", "replace"))
        return found

    def numbers(self, key: str) -> Sequence[float]:
        """A list of numbers; () if the key has none."""
        array = self.values.get(key)
        if not isinstance(array, GgufArray) or array.type == _STRING:
            return array if isinstance(array, tuple) else ()
        return struct.unpack(f"<{array.length}{_SCALARS[array.type][1]}", self._read(array))

    def _read(self, array: GgufArray) -> bytes:
        with open_file(self.path) as file:
            file.seek(array.start)
            return file.read(array.end - array.start)


def read_gguf(path: Path) -> Gguf:
    """Read the header; of a split model that of all its pieces, from the first one.

    NotFoundError for a file that is not GGUF, is truncated, or is a piece without the others beside it.
    """
    found = _read_file(path)
    pieces = found.values.get("split.count")
    if not isinstance(pieces, int) or pieces < 2:
        return found
    named = _FIRST_PIECE.fullmatch(path.name)
    if named is None or int(named[3]) != pieces:
        raise NotFoundError(
            f"{path} is one of {pieces} pieces of a model.",
            f"Name the first one, with the others beside it: NAME-00001-of-{pieces:05}.gguf.",
        )
    others = (path.with_name(f"{named[1]}{number:05}{named[2]}") for number in range(2, pieces + 1))
    return join_pieces([found, *map(_read_file, others)])


def _read_file(path: Path) -> Gguf:
    with _reading(str(path)):
        found = path.stat()
        return _read_version(path, found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(8)  # the plan, the tokenizer and a loader read the same header
def _read_version(path: Path, _number: int, _changed: int, size: int) -> Gguf:
    with open_file(path) as file:
        return _read(path, file, size)


def read_gguf_beginning(path: Path, size: int, name: str) -> Gguf | None:
    """Read the header of the file `name`, of which `path` has the first of all its `size` bytes.

    None if they end before the header does; NotFoundError as for a whole file.
    """
    with _reading(name), open_file(path) as file:
        try:
            return _read(Path(name), file, size)
        except _Truncated:
            if os.fstat(file.fileno()).st_size >= size:
                raise
            return None


def join_pieces(pieces: Sequence[Gguf]) -> Gguf:
    """The header of a split model: the values of its first piece, and the tensors of all."""
    tensors = {name: tensor for piece in pieces for name, tensor in piece.tensors.items()}
    return replace(pieces[0], tensors=tensors, stored_bytes=sum(piece.stored_bytes for piece in pieces))


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, struct.error, ValueError, OverflowError) as error:
        raise NotFoundError(
            f"{name} cannot be read as a GGUF file: {failure_reason(error)}.",
            "Download it again, or use another file.",
        ) from error


def _read(path: Path, file: BinaryIO, size: int) -> Gguf:
    if file.read(4) != b"GGUF" or _number(file, "<I") not in (2, 3):
        raise ValueError("it does not start with a GGUF header of version 2 or 3")
    tensors, pairs = _number(file, "<Q"), _number(file, "<Q")
    if tensors > _MOST_TENSORS or pairs > _MOST_PAIRS:
        raise ValueError("it lists more tensors or values than any model has")
    values = _values(file, pairs)
    listed = [_tensor(file) for _ in range(tensors)]
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
        raise ValueError(f"general.alignment must be a power of two (got {format_value(alignment)})")
    start = -(-file.tell() // alignment) * alignment
    found = {name: GgufTensor(path, kind, shape, start + at) for name, kind, shape, at in listed}
    for name, tensor in found.items():
        # no format stores a weight in less than one bit
        if tensor.offset + prod(tensor.shape) // 8 > size:
            raise ValueError(f"it is truncated: {format_value(name)} ends after the file")
    return Gguf(path, values, found, size - start)  # the tensors fill the rest of the file


def _values(file: BinaryIO, pairs: int) -> dict[str, object]:
    values: dict[str, object] = {}
    kept = items = 0
    for _ in range(pairs):
        key = _text(file, _LONGEST_NAME)
        value = values[key] = _value(file, _number(file, "<I"))
        kept += len(value) if isinstance(value, str) else 0
        items += value.length if isinstance(value, GgufArray) else 0
        if kept > _MOST_TEXT or items > _MOST_ITEMS:
            raise ValueError("it contains more text, or longer lists, than any model has")
    return values


def _tensor(file: BinaryIO) -> tuple[str, int, tuple[int, ...], int]:
    name, dimensions = _text(file, _LONGEST_NAME), _number(file, "<I")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"{format_value(name)} has {dimensions} dimensions")
    sizes = [_number(file, "<Q") for _ in range(dimensions)]
    if min(sizes) < 1:
        raise ValueError(f"{format_value(name)} has a size of 0")
    return name, _number(file, "<I"), tuple(reversed(sizes)), _number(file, "<Q")


def _value(file: BinaryIO, kind: int) -> object:
    if kind == _STRING:
        return _text(file, _MOST_TEXT)
    if kind == _ARRAY:
        return _array(file)
    value = _scalar(file, _form(kind))
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it contains an infinite number or NaN")
    return value


def _form(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"it contains a value of the unknown type {kind}")
    return _SCALARS[kind]


def _array(file: BinaryIO) -> "GgufArray | tuple[float, ...]":
    kind, count = _number(file, "<I"), _number(file, "<Q")
    if kind in _SCALARS and count <= _SHORT:
        return tuple(_scalar(file, _SCALARS[kind]) for _ in range(count))
    if count > _MOST_ITEMS:
        raise ValueError("it contains a list longer than any vocabulary")
    start = file.tell()
    if kind != _STRING:
        return GgufArray(kind, count, start, file.seek(count * struct.calcsize(_form(kind)), 1))
    _skip_texts(file, count)
    return GgufArray(kind, count, start, file.tell())


def _skip_texts(file: BinaryIO, count: int) -> None:
    """Move past `count` texts; the file is read in pieces, since a read for each of them is slow."""
    data, at, length_at = b"", 0, _LENGTH.unpack_from
    for _ in range(count):
        if at + 8 > len(data):
            file.seek(at - len(data), 1)
            data, at = file.read(_PIECE), 0
            if len(data) < 8:
                raise _Truncated("it is truncated")
        length = length_at(data, at)[0]
        if length > _MOST_TEXT:
            raise ValueError("it is truncated")
        at += 8 + length
    file.seek(at - len(data), 1)


def _text(file: BinaryIO, longest: int) -> str:
    length = _number(file, "<Q")
    if length > longest:
        raise ValueError("it is truncated, or contains a text that is too long")
    try:
        return _exactly(file, length).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it contains a text that is not UTF-8") from None


def _number(file: BinaryIO, form: str) -> int:
    return int(_scalar(file, form))


def _scalar(file: BinaryIO, form: str) -> float:
    value: float = struct.unpack(form, _exactly(file, struct.calcsize(form)))[0]
    return value


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _Truncated("it is truncated")
    return data
