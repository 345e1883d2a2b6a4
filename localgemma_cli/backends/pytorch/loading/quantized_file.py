"""The file of a checkpoint's 4-bit copy: its tensors, their places in it, and the modules over them.

A safetensors file whose layout is known before it is written. A linear layer becomes two tensors:

    kind         packed, uint8       second tensor
    interleaved  [n, k / 2]          scales [k / 64, n] bfloat16
    plain        [n * k / 2, 1]      maxima [n * k / 64] bfloat16 or float32
    int4         [padded n, k / 2]   scales [k / 64, padded n, 2] bfloat16: scale and offset
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

from localgemma_cli.backends.pytorch.layers.int4 import ROWS, Int4Linear
from localgemma_cli.backends.pytorch.layers.nf4 import InterleavedNF4, PlainNF4
from localgemma_cli.backends.pytorch.weights.mmap_prefetch import Span
from localgemma_cli.backends.pytorch.weights.quantize_int4 import GROUP
from localgemma_cli.backends.pytorch.weights.quantize_nf4 import BLOCK, PACK_ROWS
from localgemma_cli.models.safetensors_file import Stored, TensorEntry, header

Kind = Literal["interleaved", "plain", "int4", "copy"]  # NF4 in two layouts, PyTorch's int4, unquantized

TORCH_DTYPES = {"U8": torch.uint8, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_SAFETENSORS_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Conversion:
    """One tensor of the checkpoint and what it becomes; a linear layer has its module's `name`."""

    name: str
    source: Stored
    kind: Kind

    def entries(self, dtype: torch.dtype) -> tuple[TensorEntry, ...]:
        """The tensors to write, in order; `dtype` is the model's."""
        if self.kind == "copy":
            return (TensorEntry(self.name, _SAFETENSORS_DTYPES[dtype], self.source.shape),)
        rows, width = self.source.shape
        packed, blocks = f"{self.name}.packed", width // BLOCK
        if self.kind == "int4":
            padded = padded_rows(rows)
            scales = TensorEntry(f"{self.name}.scales", "BF16", (width // GROUP, padded, 2))
            return TensorEntry(packed, "U8", (padded, width // 2)), scales
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
            case "int4":
                return Int4Linear(packed, tensors[f"{self.name}.scales"], GROUP, rows)
        return PlainNF4(packed, tensors[f"{self.name}.maxima"], rows)


def linear_kind(shape: tuple[int, ...], wanted: Kind) -> Kind:
    """`wanted`, or plain NF4 where the rows are no multiple of those the interleaved kernel reads at once."""
    return "plain" if wanted == "interleaved" and shape[0] % PACK_ROWS else wanted


def padded_rows(rows: int) -> int:
    """The rows of an int4 weight in the file: a multiple of `ROWS`, which every kernel's block divides."""
    return -(-rows // ROWS) * ROWS


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
