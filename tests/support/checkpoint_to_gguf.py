"""Writes a Gemma checkpoint as a GGUF file, with weights as llama.cpp's converter and quantizer lay them out.

The vocabulary is a placeholder of the right size: for measurements, which use token ids.

    PYTHONPATH=tests python -m support.checkpoint_to_gguf FOLDER f32|bf16|q8_0|q4_0 FILE
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open
from support.gguf_models import ARCHITECTURES, add_config, gguf_name

_BLOCK = 256  # weights of one row that a K-quant keeps together


def convert_checkpoint(folder: Path, kind: Kind, path: Path) -> None:
    """One tensor at a time is in memory."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, ARCHITECTURES[config["model_type"]])
    add_config(writer, SimpleNamespace(**config))
    _add_vocabulary(writer, config)
    for name, tensor in _tensors(folder):
        shape, kept = tuple(tensor.shape), _kind(name, tensor.shape, kind)
        size = tensor.numel() // gguf.GGML_QUANT_SIZES[kept][0] * gguf.GGML_QUANT_SIZES[kept][1]
        stored = gguf_name(name, config["model_type"])
        writer.add_tensor_info(stored, shape, np.dtype(np.float32), size, raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in _tensors(folder):
        weights = tensor.float().numpy()
        if "norm" in name:
            weights += 1  # Gemma multiplies by one plus the stored weight
        writer.write_tensor_data(quantize(weights, _kind(name, tensor.shape, kind)))
    writer.close()


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118  # a safetensors file is no mapping
                yield name, shard.get_tensor(name)


def _kind(name: str, shape: torch.Size, kind: Kind) -> Kind:
    """llama.cpp keeps vectors in float32, and beside Q4_0 the head in Q6_K, or in Q8_0 if rows do not fit."""
    if len(shape) == 1:
        return Kind.F32
    if kind is Kind.Q4_0 and name.startswith(("model.embed_tokens", "lm_head")):
        return Kind.Q8_0 if shape[-1] % _BLOCK else Kind.Q6_K
    return kind


def quantize(weights: np.ndarray[Any, Any], kind: Kind) -> np.ndarray[Any, Any]:
    if kind is not Kind.Q6_K:
        return gguf.quantize(weights, kind)  # which has no Q6_K
    rows = np.array_split(weights.reshape(-1, _BLOCK), max(1, weights.size >> 24))
    return np.concatenate([_to_q6_k(each) for each in rows])


def _to_q6_k(blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bytes of (blocks, 256) weights: 16 groups with a scale in 8 bits, and a step for all of them."""
    groups = blocks.reshape(-1, 16, 16)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)[..., 0]
    wanted = largest / -32
    step = (np.abs(wanted).max(-1, keepdims=True) / 127).astype(np.float16)
    scales = np.rint(np.divide(wanted, step, where=step > 0, out=np.zeros_like(wanted))).astype(np.int8)
    exact = (scales * step.astype(np.float32))[..., None]
    levels = np.rint(np.divide(groups, exact, where=exact != 0, out=np.zeros_like(groups)))
    codes = (np.clip(levels, -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = codes & 15, codes >> 4
    four_bits = (low[:, :, :2] | low[:, :, 2:] << 4).reshape(-1, 128)
    two_bits = (high << np.arange(0, 8, 2, dtype=np.uint8)[:, None]).sum(2, dtype=np.uint8).reshape(-1, 64)
    return np.concatenate([four_bits, two_bits, scales.view(np.uint8), step.view(np.uint8)], axis=-1)


def _add_vocabulary(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    control = ("<pad>", "<eos>", "<bos>", "<unk>")
    tokens = [*control, *(f"\u2581w{number}" for number in range(len(control), config["vocab_size"]))]
    kinds = [gguf.TokenType.CONTROL] * len(control)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (len(tokens) - len(kinds))])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)


if __name__ == "__main__":
    convert_checkpoint(Path(sys.argv[1]), Kind[sys.argv[2].upper()], Path(sys.argv[3]))
