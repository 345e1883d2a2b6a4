"""Modules over weights in a mapped file: linear layers in NF4, and a table of embeddings."""

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from localgemma_cli.backends.pytorch.kernels.nf4 import find_nf4_rows, nf4_rows, run_nf4
from localgemma_cli.backends.pytorch.weights.mmap_tensors import is_mapped, read_rows
from localgemma_cli.backends.pytorch.weights.quantize_nf4 import BLOCK


def nf4_layout(device: str = "cpu") -> Literal["interleaved", "plain"]:
    """Return NF4's layout: interleaved on a CPU with AVX512-BF16, else bitsandbytes' plain one."""
    return "interleaved" if device == "cpu" and find_nf4_rows() else "plain"


class InterleavedNF4(nn.Module):
    """A linear layer in the interleaved layout, x [..., k] -> [..., n] in the dtype of x.

    `packed` is [n, k / 2] uint8, `scales` [k / 64, n] bfloat16. It has the same kernel and the same bits as a
    bitsandbytes Linear4bit in eval mode after its first forward pass.
    """

    packed: Tensor
    scales: Tensor

    def __init__(self, packed: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.out_features, self.in_features = packed.shape[0], 2 * packed.shape[1]
        self._product = find_nf4_rows()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        if self._product is None or torch.compiler.is_compiling():
            out = nf4_rows(rows, self.packed, self.scales)
        else:
            out = run_nf4(self._product, rows, self.packed, self.scales)
        result: Tensor = out.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return result

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class PlainNF4(nn.Module):
    """A linear layer in bitsandbytes' plain layout, x [..., k] -> [..., n].

    `packed` is [n * k / 2, 1] uint8, `maxima` [n * k / 64]; in float32 the product skips a conversion. On
    CUDA the host does not synchronise, so that a CUDA graph can record a step.
    """

    packed: Tensor
    maxima: Tensor

    def __init__(self, packed: Tensor, maxima: Tensor, rows: int) -> None:
        super().__init__()
        _import_bitsandbytes()
        self.register_buffer("packed", packed)
        self.register_buffer("maxima", maxima)
        self.out_features, self.in_features = rows, 2 * packed.numel() // rows

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.out_features, self.in_features)
        maxima = self.maxima.float()
        out: Tensor = torch.ops.bitsandbytes.gemm_4bit(x, self.packed, shape, maxima, BLOCK, "nf4")
        return out

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


def _import_bitsandbytes() -> None:
    """Register its operators; silence its hint to install a package that this layout does not use."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes  # noqa: F401


class EmbeddingTable(nn.Module):
    """An embedding, ids [...] -> rows [..., hidden] in `dtype`, multiplied by `scale` if the model has one.

    `weight` [vocabulary, hidden] may be mapped from the checkpoint, in the checkpoint's dtype and on the CPU:
    then only the rows that are looked up are read, converted and copied to the device of the ids.
    """

    weight: Tensor
    scale: Tensor | None

    def __init__(self, weight: Tensor, dtype: torch.dtype, scale: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)  # as a parameter its dtype would be taken for the model's
        self.register_buffer("scale", scale)
        self.dtype = dtype
        self._is_mapped = weight.device.type == "cpu" and is_mapped(weight)

    def forward(self, ids: Tensor) -> Tensor:
        look_up = read_rows if self._is_mapped and not torch.compiler.is_compiling() else _embedding
        rows = look_up(self.weight, ids.to(self.weight.device)).to(ids.device, self.dtype)
        return rows if self.scale is None else rows * self.scale.to(self.dtype)


def _embedding(table: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.embedding(ids, table)
