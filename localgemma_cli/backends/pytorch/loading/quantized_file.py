"""The file of a checkpoint's quantized copy: its tensors, their places in it, and the modules over them.

A safetensors file whose layout is known before it is written. A linear layer becomes two tensors:

    kind         packed, uint8       second tensor
    interleaved  [n, k / 2]          scales [k / 64, n] bfloat16
    plain        [n * k / 2, 1]      maxima [n * k / 64] bfloat16 or float32
    int4, int8   [padded n / 32,     factors [2, padded n] float32; with int8 [1, padded n]
                  k / 32, bytes]
"""

import math
import mmap
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from localgemma_cli.backends.pytorch.layers.grouped import GroupedLinear
from localgemma_cli.backends.pytorch.layers.nf4 import InterleavedNF4, PlainNF4
from localgemma_cli.backends.pytorch.weights.groups import BLOCK as ROW_BLOCK
from localgemma_cli.backends.pytorch.weights.groups import GROUP, GROUP_BYTES
from localgemma_cli.backends.pytorch.weights.mmap_prefetch import Span
from localgemma_cli.backends.pytorch.weights.quantize_nf4 import BLOCK, PACK_ROWS
from localgemma_cli.models.safetensors_file import Stored, TensorEntry, header, map_file

Kind = Literal["interleaved", "plain", "int4", "int8", "copy"]  # NF4 in two layouts, groups, unquantized

TORCH_DTYPES = {"U8": torch.uint8, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_SAFETENSORS_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Conversion:
    """One tensor of the checkpoint and what it becomes; a linear layer has its module's `name`."""

    name: str
    source: Stored
    kind: Kind

    @property
    def bits(self) -> int:
        """Of a weight in groups; 0 for other kinds."""
        return {"int4": 4, "int8": 8}.get(self.kind, 0)

    def entries(self, dtype: torch.dtype) -> tuple[TensorEntry, ...]:
        """The tensors to write, in order; `dtype` is the model's."""
        if self.kind == "copy":
            return (TensorEntry(self.name, _SAFETENSORS_DTYPES[dtype], self.source.shape),)
        rows, width = self.source.shape
        packed, blocks = f"{self.name}.packed", width // BLOCK
        if bits := self.bits:
            padded = padded_rows(rows)
            factors = TensorEntry(f"{self.name}.factors", "F32", (factor_rows(bits), padded))
            shape = (padded // ROW_BLOCK, width // GROUP, GROUP_BYTES[bits])
            return TensorEntry(packed, "U8", shape), factors
        if self.kind == "interleaved":
            scales = TensorEntry(f"{self.name}.scales", "BF16", (blocks, rows))
            return TensorEntry(packed, "U8", (rows, width // 2)), scales
        # A maximum is one of the weights, so bfloat16 holds it exactly where the weights are bfloat16
        exact = "BF16" in (self.source.dtype, _SAFETENSORS_DTYPES[dtype])
        maxima = TensorEntry(f"{self.name}.maxima", "BF16" if exact else "F32", (rows * blocks,))
        return TensorEntry(packed, "U8", (rows * width // 2, 1)), maxima

    def linear(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The linear layer over its two tensors."""
        packed, rows = tensors[f"{self.name}.packed"], self.source.shape[0]
        match self.kind:
            case "interleaved":
                return InterleavedNF4(packed, tensors[f"{self.name}.scales"])
            case "int4" | "int8":
                return GroupedLinear(packed, tensors[f"{self.name}.factors"], rows)
        return PlainNF4(packed, tensors[f"{self.name}.maxima"], rows)


def linear_kind(name: str, rows: int, wanted: Kind, small_head: bool) -> Kind:
    """`wanted` where it is possible, and 8 bits where 4 would cost most.

    The head and the projections to values are a small part of a large model, and 4 bits there change the
    answers of a real Gemma (270m) as much as in all other layers.
    """
    if wanted == "int4" and (name.endswith("v_proj") or (name == "lm_head" and not small_head)):
        return "int8"
    return "plain" if wanted == "interleaved" and rows % PACK_ROWS else wanted


def padded_rows(rows: int) -> int:
    """The rows of a weight in groups: a multiple of those that lie together."""
    return -(-rows // ROW_BLOCK) * ROW_BLOCK


def factor_rows(bits: int) -> int:
    """How many factors an output feature has: of its scales, and with 4 bits of its offsets."""
    return 2 if bits == 4 else 1


@dataclass(frozen=True)
class QuantizedFile:
    """The layout of one file. Weights are cast to `dtype`, the model's, before they are quantized."""

    conversions: tuple[Conversion, ...]
    dtype: torch.dtype

    @cached_property
    def entries(self) -> tuple[TensorEntry, ...]:
        """All tensors, in the order in which they are written."""
        return tuple(entry for each in self.conversions for entry in each.entries(self.dtype))

    @cached_property
    def header(self) -> bytes:
        return header(self.entries)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(entry.size for entry in self.entries)

    @cached_property
    def spans(self) -> dict[str, Span]:
        """The bytes of the file that each tensor occupies."""
        spans, offset = {}, len(self.header)
        for entry in self.entries:
            spans[entry.name] = Span(offset, offset + entry.size)
            offset += entry.size
        return spans


class QuantizedWeights:
    """A quantized file that has been written, and its tensors over its mapped bytes."""

    def __init__(self, layout: QuantizedFile, buffer: mmap.mmap) -> None:
        self.layout, self.buffer = layout, buffer
        self.tensors: Mapping[str, Tensor] = {
            entry.name: map_tensor(buffer, layout.spans[entry.name].first, entry) for entry in layout.entries
        }


def map_tensor(buffer: mmap.mmap, offset: int, stored: TensorEntry | Stored) -> Tensor:
    """A read-only tensor over mapped bytes; nothing is copied."""
    count = math.prod(stored.shape)
    with warnings.catch_warnings(action="ignore"):  # PyTorch warns that the buffer is not writable
        flat = torch.frombuffer(buffer, dtype=TORCH_DTYPES[stored.dtype], count=count, offset=offset)
    return flat.view(stored.shape)


def map_stored(stored: Stored) -> Tensor:
    """A checkpoint's tensor, read-only over its file."""
    return map_tensor(map_file(stored.file), stored.offset, stored)


def attach_tensors(
    model: nn.Module, conversions: Iterable[Conversion], tensors: Mapping[str, Tensor]
) -> None:
    """Replace the empty parameters and linear layers of `model` by those of the file."""
    for each in conversions:
        parent, _, leaf = each.name.rpartition(".")
        owner = model.get_submodule(parent)
        if each.kind == "copy":
            setattr(owner, leaf, nn.Parameter(tensors[each.name], requires_grad=False))
        else:
            setattr(owner, leaf, each.linear(tensors))
