"""Modules over weights that lie in a mapped file: a 4-bit linear layer, and a table of embeddings."""

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from localgemma_cli.backends.pytorch.kernels.nf4 import find_nf4_rows, nf4_rows, run_nf4
from localgemma_cli.backends.pytorch.weights.mmap_tensors import in_file, rows_of
from localgemma_cli.backends.pytorch.weights.quantize_nf4 import BLOCK


def layout(device: str = "cpu") -> Literal["interleaved", "plain"]:
    """Return NF4's layout: interleaved on a CPU with AVX512-BF16, else bitsandbytes' plain one."""
    return "interleaved" if device == "cpu" and find_nf4_rows() else "plain"


class InterleavedNF4(nn.Module):
    """x [..., k] -> [..., n] from `packed` [n, k / 2] uint8 and `scales` [k / 64, n] bfloat16.

    The same product and the same numbers as a bitsandbytes Linear4bit in eval mode after its first forward.
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
    """x [..., k] -> [..., n] from `packed` [n * k / 2, 1] uint8 and `maxima` [n * k / 64].

    On CUDA nothing waits for the host, so that a step can be recorded; maxima in float32 save a conversion.
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
    """Register its operators, without its advice to install a package that the plain layout does not use."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes  # noqa: F401


class EmbeddingTable(nn.Module):
    """ids [...] -> rows [..., hidden] in `dtype`, times `scale` where the model has one.

    `weight` [vocabulary, hidden] may be in the checkpoint's own dtype and file: then only the rows looked up
    are read, and only those are copied to a GPU.
    """

    weight: Tensor
    scale: Tensor | None

    def __init__(self, weight: Tensor, dtype: torch.dtype, scale: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)  # a parameter's dtype would count as the model's
        self.register_buffer("scale", scale)
        self.dtype = dtype
        self._in_file = weight.device.type == "cpu" and in_file(weight)

    def forward(self, ids: Tensor) -> Tensor:
        look_up = rows_of if self._in_file and not torch.compiler.is_compiling() else _embedding
        rows = look_up(self.weight, ids.to(self.weight.device)).to(ids.device, self.dtype)
        return rows if self.scale is None else rows * self.scale.to(self.dtype)


def _embedding(table: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.embedding(ids, table)
