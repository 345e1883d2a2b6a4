"""Checks that a folder has the weights that its config.json describes, before memory is allocated for them.

transformers allocates missing tensors in the size that config.json gives: a small file could fill all memory.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path

from localgemma_cli.backends.pytorch.loading.assemble import incomplete_checkpoint
from localgemma_cli.documents import read_json_object
from localgemma_cli.models.architecture import Architecture
from localgemma_cli.models.model_config import architecture_of
from localgemma_cli.models.safetensors_file import EMBEDDING, Stored, read_checkpoint

_PLAIN = ("BF16", "F16", "F32", "F64")
_BITS = {"BF16": 16, "F16": 16, "F32": 32, "F64": 64, "I32": 32, "I64": 64}  # 8 for all others
_QUANTIZED = (".weight", ".qweight", ".weight_packed")
_LEAST_BITS = 4  # per weight in any format


def require_complete(folder: Path, name: str) -> None:
    """Check the names and shapes of the large matrices, and the size of the whole.

    NotFoundError where tensors are missing, ValueError where they do not match config.json. Models that are
    not Gemmas are not checked.
    """
    shape = architecture_of(read_json_object(folder / "config.json"), name, force=True)
    if shape.family == "other":
        return
    tensors = read_checkpoint(folder)
    missing = []
    for stem, rows, columns in _large_matrices(shape):
        found = next((tensors[stem + end] for end in _QUANTIZED if stem + end in tensors), None)
        if found is None:
            missing.append(f"{stem}.weight")
        elif not _has_shape(found, rows, columns):
            raise ValueError(
                f"{stem} in {found.file.name} has shape {list(found.shape)}, expected {[rows, columns]}"
                " from config.json"
            )
    if missing:
        raise incomplete_checkpoint(folder, missing)
    if any(name.startswith(f"model.layers.{shape.layers}.") for name in tensors):
        raise ValueError(f"the weights have more layers than the {shape.layers} in config.json")
    if sum(map(_bits, tensors.values())) < _LEAST_BITS * shape.linear_parameters:
        raise ValueError("the weight files are too small for the model that config.json describes")


def _has_shape(found: Stored, rows: int, columns: int) -> bool:
    if found.dtype in _PLAIN:
        return found.shape == (rows, columns)
    return _bits(found) >= _LEAST_BITS * rows * columns


def _bits(tensor: Stored) -> int:
    return prod(tensor.shape) * _BITS.get(tensor.dtype, 8)


def _large_matrices(shape: Architecture) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of each; without Gemma 4's layers, which differ from each other."""
    yield EMBEDDING.removesuffix(".weight"), shape.vocabulary, shape.hidden
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for index in range(shape.layers if shape.gemma4 is None else 0):
        layer = f"model.layers.{index}"
        yield f"{layer}.self_attn.q_proj", queries, shape.hidden
        yield f"{layer}.self_attn.k_proj", keys, shape.hidden
        yield f"{layer}.self_attn.v_proj", keys, shape.hidden
        yield f"{layer}.self_attn.o_proj", shape.hidden, queries
        yield f"{layer}.mlp.gate_proj", shape.ffn, shape.hidden
        yield f"{layer}.mlp.up_proj", shape.ffn, shape.hidden
        yield f"{layer}.mlp.down_proj", shape.hidden, shape.ffn
