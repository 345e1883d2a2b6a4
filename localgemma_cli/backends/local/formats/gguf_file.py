"""What stands before the weights in a GGUF file, read without any package: enough to plan with.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from localgemma_cli.errors import NotFoundError
from localgemma_cli.planning.architecture import StoredFormat

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
# The two whose attention is scaled by the width of a head in the residual stream, not by its own: 27b.
_SCALED_BY_HIDDEN = {("gemma2", 46), ("gemma3", 62)}


@dataclass(frozen=True)
class Tensor:
    """`shape` as PyTorch counts it; `offset` in bytes from the start of the file."""

    type: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Gguf:
    """`values` without arrays: of those only the length is kept."""

    path: Path
    values: Mapping[str, object]
    tensors: Mapping[str, Tensor]

    @property
    def stored(self) -> StoredFormat:
        """Named after the type that most weights have."""
        weights = Counter[int]()
        for tensor in self.tensors.values():
            weights[tensor.type] += prod(tensor.shape)
        kind = weights.most_common(1)[0][0]
        return StoredFormat("gguf", detail=_TYPES.get(kind, f"type {kind}"))

    def config(self) -> dict[str, object]:
        """The same as a config.json; of an architecture that is not known here, its name only."""
        kind = str(self.values.get("general.architecture"))
        if kind not in _MODEL_TYPES:
            return {"model_type": kind, "architectures": [f"the GGUF architecture {kind}"]}
        found = {name: self.values.get(f"{kind}.{key}") for key, name in _KEYS.items()}
        config = {name: value for name, value in found.items() if value is not None}
        layers, heads, hidden = (
            config.get(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
        )
        if (kind, layers) in _SCALED_BY_HIDDEN and isinstance(hidden, int) and isinstance(heads, int):
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

    def _special_ids(self) -> dict[str, object]:
        names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
        ids = {config: self.values.get(f"tokenizer.ggml.{name}_token_id") for name, config in names.items()}
        return {config: number for config, number in ids.items() if number is not None}


def read_gguf(path: Path) -> Gguf:
    """A NotFoundError where the file is none, is cut short, or is one of several."""
    try:
        with path.open("rb") as file:
            found = _read(path, file)
    except (OSError, struct.error, UnicodeDecodeError, ValueError, KeyError, OverflowError) as error:
        raise NotFoundError(
            f"{path} cannot be read as a GGUF file: {error}.", "Download it again, or give another file."
        ) from error
    pieces = found.values.get("split.count")
    if isinstance(pieces, int) and pieces > 1:
        raise NotFoundError(
            f"{path} is one of {pieces} pieces of a model.", "Join them with llama-gguf-split --merge."
        )
    return found


def _read(path: Path, file: BinaryIO) -> Gguf:
    if file.read(4) != b"GGUF" or _number(file, "<I") not in (2, 3):
        raise ValueError("it does not begin like one, or is older than version 2")
    tensors, pairs = _number(file, "<Q"), _number(file, "<Q")
    values = {_text(file): _value(file, _number(file, "<I")) for _ in range(pairs)}
    listed = [_tensor(file) for _ in range(tensors)]
    alignment = values.get("general.alignment", 32)
    start = -(-file.tell() // alignment) * alignment if isinstance(alignment, int) else 0
    return Gguf(path, values, {name: Tensor(kind, shape, start + at) for name, kind, shape, at in listed})


def _tensor(file: BinaryIO) -> tuple[str, int, tuple[int, ...], int]:
    name = _text(file)
    sizes = [_number(file, "<Q") for _ in range(_number(file, "<I"))]
    return name, _number(file, "<I"), tuple(reversed(sizes)), _number(file, "<Q")


def _value(file: BinaryIO, kind: int) -> object:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        return _skipped_array(file)
    return _scalar(file, _SCALARS[kind])


def _skipped_array(file: BinaryIO) -> int:
    kind, count = _number(file, "<I"), _number(file, "<Q")
    if kind == _STRING:
        for _ in range(count):
            file.seek(_number(file, "<Q"), 1)
    else:
        file.seek(count * struct.calcsize(_SCALARS[kind]), 1)
    return count


def _text(file: BinaryIO) -> str:
    return _exactly(file, _number(file, "<Q")).decode("utf-8")


def _number(file: BinaryIO, form: str) -> int:
    return int(_scalar(file, form))


def _scalar(file: BinaryIO, form: str) -> float:
    value: float = struct.unpack(form, _exactly(file, struct.calcsize(form)))[0]
    return value


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size) if size < 1 << 28 else b""  # no text of a header is that long
    if len(data) != size:
        raise ValueError("it is cut short")
    return data
