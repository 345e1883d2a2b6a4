"""Headers of safetensors files, read and written without mapping the whole file.

The library maps whole files: each page that was read stays in this process's memory until it exits.
Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, TypeVar

from localgemma_cli.documents import Unreadable, format_value, open_file, parse_json_object, read_json_object

ITEM_BYTES: Mapping[str, int] = {"U8": 1, "I8": 1, "BF16": 2, "F16": 2, "F32": 4}
NESTED = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FLOATS = ("BF16", "F16", "F32")  # the dtypes of unquantized weights
_INDEX = "model.safetensors.index.json"
_LOOKS = 64
_HEADER_LIMIT, _INDEX_LIMIT = 8 << 20, 16 << 20  # bytes; the largest Gemmas need a twentieth of it
_DIMENSIONS = 8


Tensor = TypeVar("Tensor")


@dataclass(frozen=True)
class Stored:
    """The place of one tensor: `offset` in bytes into `file`, `dtype` as safetensors names it."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(path: Path) -> dict[str, Stored]:
    """Every tensor of one file; ValueError for a damaged or truncated file."""
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _HEADER_LIMIT:
            raise ValueError(f"{path.name} is not a safetensors file")
        data = file.read(length)
        end = os.fstat(file.fileno()).st_size - 8 - length
    if len(data) < length:
        raise ValueError(f"{path.name} is truncated")
    try:
        entries = parse_json_object(data)
    except Unreadable as error:
        raise ValueError(f"{path.name} has a damaged header: {error}") from None
    entries.pop("__metadata__", None)
    found = {name: _stored(path, name, entry, 8 + length, end) for name, entry in entries.items()}
    _require_apart(path, entries.values())
    return found


def _stored(path: Path, name: str, entry: object, start: int, end: int) -> Stored:
    values = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = values.get("dtype"), values.get("shape"), values.get("data_offsets")
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{path.name} has a damaged header: {format_value(name)}")
    first, last = offsets
    tensor = Stored(path, start + first, dtype, tuple(shape))
    if not first <= last <= end or (dtype in ITEM_BYTES and tensor.size != last - first):
        raise ValueError(f"{path.name} is truncated or damaged: {format_value(name)}")
    return tensor


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > _DIMENSIONS:
        return False
    return all(type(each) is int and 0 <= each < 1 << 63 for each in value)


def _require_apart(path: Path, entries: Iterable[Any]) -> None:
    """Check that no two tensors overlap: a small file could otherwise claim to be a large model."""
    end = 0
    for first, last in sorted(entry["data_offsets"] for entry in entries):
        if first < end:
            raise ValueError(f"{path.name} has a damaged header: its tensors overlap")
        end = last


def read_checkpoint(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model's folder, by the names of the language model."""
    return {language_name(name): tensor for name, tensor in _read_all(folder).items()}


def language_name(name: str) -> str:
    """Remove the prefix of Gemma 3 with vision: `language_model.model.` or `model.language_model.`."""
    for prefix, own in NESTED.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name


def _read_all(folder: Path) -> dict[str, Stored]:
    """In the loader's order: a single file before an index."""
    single, index = folder / "model.safetensors", folder / _INDEX
    if single.is_file() or not index.is_file():
        return read_header(single)
    shards = shards_of(index)
    if lost := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ValueError(f"{len(lost)} of {len(shards)} weight files are missing, {lost[0]} among them")
    return {name: tensor for shard in shards for name, tensor in read_header(folder / shard).items()}


def shards_of(index: Path) -> list[str]:
    """The files that an index names, all in its own folder; ValueError for a damaged index."""
    try:
        names = read_json_object(index, _INDEX_LIMIT).get("weight_map")
    except ValueError as error:
        raise ValueError(f"{index.name} is damaged: {error}") from None
    if not isinstance(names, dict) or not all(_is_shard(name) for name in names.values()):
        raise ValueError(f"{index.name} is damaged: weight_map must name files in the same folder")
    return sorted(set(names.values()))


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and name == os.path.basename(name) and "\0" not in name and len(name) < 256


@dataclass(frozen=True)
class TensorEntry:
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def header(entries: Iterable[TensorEntry]) -> bytes:
    """The header before the tensors, padded so that they start at a page."""
    table, offset = {}, 0
    for entry in entries:
        end = offset + entry.size
        table[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % mmap.ALLOCATIONGRANULARITY)
    return len(text).to_bytes(8, "little") + text


def is_tied(says_so: bool, tensors: Mapping[str, Tensor], same: Callable[[Tensor, Tensor], bool]) -> bool:
    """Whether the output head is the embedding; a stored head that differs overrides the config, `says_so`.

    As in transformers. `tensors`: a checkpoint's by name, in any form that `same` can compare.
    """
    embedding, head = tensors.get(EMBEDDING), tensors.get(HEAD)
    return head is None or (says_so and embedding is not None and same(embedding, head))


def alike(one: Stored, other: Stored) -> bool:
    """Whether two tensors are equal, judged by samples at `_LOOKS` places."""
    if (one.dtype, one.shape) != (other.dtype, other.shape) or one.dtype not in ITEM_BYTES:
        return False
    steps = range(0, one.size, max(1, one.size // _LOOKS))
    with one.file.open("rb") as first, other.file.open("rb") as second:
        return all(_read(first, one, at) == _read(second, other, at) for at in steps)


def _read(file: BinaryIO, tensor: Stored, at: int) -> bytes:
    file.seek(tensor.offset + at)
    return file.read(min(4096, tensor.size - at))


def map_file(path: Path) -> mmap.mmap:
    """Map the file read-only; the map stays valid after the file is deleted."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
