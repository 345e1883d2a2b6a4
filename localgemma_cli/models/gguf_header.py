"""What stands before the weights in a GGUF file, read without any package: enough to plan with.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import os
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from localgemma_cli.documents import name_or, open_file, reason, shown
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.architecture import StoredFormat
from localgemma_cli.models.gguf_settings import KNOWN, settings, unknown

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
_MODEL_TYPES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text"}
_KEYS = {  # llama.cpp's name of a number, and config.json's
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
}
# Of a header, beyond what any has: what follows from these is bounded, whatever a file says.
_MOST_TENSORS, _MOST_PAIRS, _MOST_ITEMS = 100_000, 10_000, 20_000_000
_LONGEST_NAME, _MOST_TEXT = 65_535, 16 << 20  # bytes
_MOST_DIMENSIONS, _MOST_ALIGNMENT = 4, 1 << 20
_TENSORS = re.compile(r"(token_embd|output_norm|output|blk\.\d+\.(attn|ffn|post)_\w+)\.weight")
_OF_OTHER_PARTS = ("vision.", "mm.", "v.")  # eyes, which are not loaded
_SHORT = 1024  # items of a list that is kept: one for each layer
# The two whose attention is scaled by the width of a head in the residual stream, not by its own: 27b.
_SCALED_BY_HIDDEN = {("gemma2", 46), ("gemma3", 62)}


@dataclass(frozen=True)
class Tensor:
    """`shape` as PyTorch counts it; `offset` in bytes from the start of the file."""

    type: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Array:
    """A list that was skipped: `length` items of a GGUF type, from `start` to `end` in the file, in bytes."""

    type: int
    length: int
    start: int
    end: int


@dataclass(frozen=True)
class Gguf:
    """What the header says of one of the architectures that are known here."""

    path: Path
    values: Mapping[str, object]
    tensors: Mapping[str, Tensor]

    @property
    def stored(self) -> StoredFormat:
        """Named after the type that most weights have; NotFoundError where there are none."""
        if not self.tensors:
            raise NotFoundError(
                f"{self.path} holds no weights.", "Give the file that holds the model, not its vocabulary."
            )
        weights = Counter[int]()
        for tensor in self.tensors.values():
            weights[tensor.type] += prod(tensor.shape)
        kind = weights.most_common(1)[0][0]
        return StoredFormat("gguf", detail=_TYPES.get(kind, f"type {kind}"))

    def config(self) -> dict[str, object]:
        """The same as a config.json; NotFoundError where the answer depends on something not known here."""
        kind = str(self.values["general.architecture"])
        self._require_known(kind)
        found = {name: self.values.get(f"{kind}.{key}") for key, name in _KEYS.items()}
        config = {name: value for name, value in found.items() if value is not None}
        config |= settings(self.path, kind, self.values, config)
        layers, heads, hidden = (
            config.get(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
        )
        is_scaled = (kind, layers) in _SCALED_BY_HIDDEN
        if is_scaled and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
            config["query_pre_attn_scalar"] = hidden // heads
        elif kind != "gemma":
            config["query_pre_attn_scalar"] = config.get("head_dim", 256)
        embedding = self.tensors.get("token_embd.weight")
        if embedding is not None:
            config["vocab_size"] = embedding.shape[0]
        return {
            **config,
            "model_type": _MODEL_TYPES[kind],
            "tie_word_embeddings": "output.weight" not in self.tensors,
            **self._special_ids(),
        }

    def texts(self, key: str) -> list[str]:
        """A list of texts; bytes that are not UTF-8 become U+FFFD. ValueError where there is none."""
        array = self.values.get(key)
        if not isinstance(array, Array) or array.type != _STRING:
            raise ValueError(f"{key} is missing, or is not a list of texts")
        with open_file(self.path) as file:
            file.seek(array.start)
            data = file.read(array.end - array.start)
        found, at = [], 0
        for _ in range(array.length):
            start = at + 8
            at = start + int.from_bytes(data[at:start], "little")
            found.append(data[start:at].decode("utf-8", "replace"))
        return found

    def numbers(self, key: str) -> Sequence[float]:
        """A list of numbers; () where there is none."""
        array = self.values.get(key)
        if not isinstance(array, Array) or array.type == _STRING:
            return array if isinstance(array, tuple) else ()
        with open_file(self.path) as file:
            file.seek(array.start)
            data = file.read(array.end - array.start)
        return struct.unpack(f"<{array.length}{_SCALARS[array.type][1]}", data)

    def _require_known(self, kind: str) -> None:
        known = (*_KEYS, *KNOWN)
        for key in self.values:
            own = key.removeprefix(f"{kind}.")
            if own != key and own not in known and not own.startswith(_OF_OTHER_PARTS):
                raise unknown(self.path, f"{shown(key)} is not known here")
        for name in self.tensors:
            if not name.startswith(_OF_OTHER_PARTS) and not _TENSORS.fullmatch(name):
                raise unknown(self.path, f"the tensor {shown(name)} is in no Gemma that is known here")

    def _special_ids(self) -> dict[str, object]:
        names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
        ids = {config: self.values.get(f"tokenizer.ggml.{name}_token_id") for name, config in names.items()}
        return {config: number for config, number in ids.items() if number is not None}


def read_gguf(path: Path) -> Gguf:
    """A NotFoundError where the file is none, is cut short, or is one of several, or of another model."""
    try:
        with open_file(path) as file:
            found = _read(path, file)
    except (OSError, struct.error, ValueError, OverflowError) as error:
        raise NotFoundError(
            f"{path} cannot be read as a GGUF file: {reason(error)}.",
            "Download it again, or give another file.",
        ) from error
    pieces = found.values.get("split.count")
    if isinstance(pieces, int) and pieces > 1:
        raise NotFoundError(
            f"{path} is one of {pieces} pieces of a model.", "Join them with llama-gguf-split --merge."
        )
    kind = found.values.get("general.architecture")
    if kind not in _MODEL_TYPES:
        named = name_or(kind, "nothing")
        what = f"is a {named}" if named.startswith("gemma") else f"is not a Gemma, but {named}"
        raise NotFoundError(
            f"{path} {what}, which does not run from a GGUF file.",
            f"Supported: {', '.join(_MODEL_TYPES)}. Of any other Gemma, give the safetensors repository.",
        )
    return found


def _read(path: Path, file: BinaryIO) -> Gguf:
    if file.read(4) != b"GGUF" or _number(file, "<I") not in (2, 3):
        raise ValueError("it does not begin like one, or is older than version 2")
    tensors, pairs = _number(file, "<Q"), _number(file, "<Q")
    size = os.fstat(file.fileno()).st_size
    if tensors > _MOST_TENSORS or pairs > _MOST_PAIRS:
        raise ValueError("it has more tensors or values than any model")
    values = _values(file, pairs)
    listed = [_tensor(file) for _ in range(tensors)]
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
        raise ValueError(f"general.alignment must be a power of two (got {shown(alignment)})")
    start = -(-file.tell() // alignment) * alignment
    found = {name: Tensor(kind, shape, start + at) for name, kind, shape, at in listed}
    for name, tensor in found.items():
        # no form of a weight takes less than one bit
        if tensor.offset + prod(tensor.shape) // 8 > size:
            raise ValueError(f"it is cut short: {shown(name)} lies beyond its end")
    return Gguf(path, values, found)


def _values(file: BinaryIO, pairs: int) -> dict[str, object]:
    values: dict[str, object] = {}
    kept = items = 0
    for _ in range(pairs):
        key = _text(file, _LONGEST_NAME)
        value = values[key] = _value(file, _number(file, "<I"))
        kept += len(value) if isinstance(value, str) else 0
        items += value.length if isinstance(value, Array) else 0
        if kept > _MOST_TEXT or items > _MOST_ITEMS:
            raise ValueError("it holds more text, or longer lists, than any model")
    return values


def _tensor(file: BinaryIO) -> tuple[str, int, tuple[int, ...], int]:
    name, dimensions = _text(file, _LONGEST_NAME), _number(file, "<I")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"{shown(name)} has {dimensions} dimensions")
    sizes = [_number(file, "<Q") for _ in range(dimensions)]
    if min(sizes) < 1:
        raise ValueError(f"{shown(name)} has a size of 0")
    return name, _number(file, "<I"), tuple(reversed(sizes)), _number(file, "<Q")


def _value(file: BinaryIO, kind: int) -> object:
    if kind == _STRING:
        return _text(file, _MOST_TEXT)
    if kind == _ARRAY:
        return _array(file)
    value = _scalar(file, _form(kind))
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it holds a number that is infinite or none")
    return value


def _form(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"it holds a value of type {kind}, which is not known here")
    return _SCALARS[kind]


def _array(file: BinaryIO) -> "Array | tuple[float, ...]":
    kind, count = _number(file, "<I"), _number(file, "<Q")
    if kind in _SCALARS and count <= _SHORT:
        return tuple(_scalar(file, _SCALARS[kind]) for _ in range(count))
    if count > _MOST_ITEMS:
        raise ValueError("it holds a list that is longer than any vocabulary")
    start = file.tell()
    if kind != _STRING:
        return Array(kind, count, start, file.seek(count * struct.calcsize(_form(kind)), 1))
    for _ in range(count):
        length = _number(file, "<Q")
        if length > _MOST_TEXT:
            raise ValueError("it is cut short")
        file.seek(length, 1)
    return Array(kind, count, start, file.tell())


def _text(file: BinaryIO, longest: int) -> str:
    length = _number(file, "<Q")
    if length > longest:
        raise ValueError("it is cut short, or holds a text that is too long")
    try:
        return _exactly(file, length).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it holds a text that is not UTF-8") from None


def _number(file: BinaryIO, form: str) -> int:
    return int(_scalar(file, form))


def _scalar(file: BinaryIO, form: str) -> float:
    value: float = struct.unpack(form, _exactly(file, struct.calcsize(form)))[0]
    return value


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it is cut short")
    return data
