"""Whether a folder holds the weights that its config.json describes, before anything is made for them.

transformers makes what is missing, of whatever size a config says: a small file could fill all memory.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path

from localgemma_cli.backends.pytorch.loading.assemble import incomplete
from localgemma_cli.documents import read_object
from localgemma_cli.models.architecture import Architecture
from localgemma_cli.models.model_config import architecture_of
from localgemma_cli.models.safetensors_file import EMBEDDING, Stored, read_checkpoint

_PLAIN = ("BF16", "F16", "F32", "F64")
_BITS = {"BF16": 16, "F16": 16, "F32": 32, "F64": 64, "I32": 32, "I64": 64}  # else 8
_QUANTIZED = (".weight", ".qweight", ".weight_packed")
_LEAST_BITS = 4  # of a weight, however it is quantized


def require_complete(folder: Path, name: str) -> None:
    """NotFoundError or ValueError for what is missing, or has another shape than config.json says."""
    shape = architecture_of(read_object(folder / "config.json"), name, force=True)
    if shape.family == "other":
        return
    tensors = read_checkpoint(folder)
    missing = []
    for stem, rows, columns in _matrices(shape):
        found = next((tensors[stem + end] for end in _QUANTIZED if stem + end in tensors), None)
        if found is None:
            missing.append(f"{stem}.weight")
        elif not _is_shaped(found, rows, columns):
            raise ValueError(
                f"{stem} in {found.file.name} is {list(found.shape)}, but config.json says {[rows, columns]}"
            )
    if missing:
        raise incomplete(folder, missing)
    if any(name.startswith(f"model.layers.{shape.layers}.") for name in tensors):
        raise ValueError(f"the weights have more layers than the {shape.layers} that config.json says")
    if sum(map(_bits, tensors.values())) < _LEAST_BITS * shape.linear_parameters:
        raise ValueError("the weights are too small for the model that config.json describes")


def _is_shaped(found: Stored, rows: int, columns: int) -> bool:
    if found.dtype in _PLAIN:
        return found.shape == (rows, columns)
    return _bits(found) >= _LEAST_BITS * rows * columns


def _bits(tensor: Stored) -> int:
    return prod(tensor.shape) * _BITS.get(tensor.dtype, 8)


def _matrices(shape: Architecture) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of the large ones; not of Gemma 4's layers, which differ among themselves."""
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
