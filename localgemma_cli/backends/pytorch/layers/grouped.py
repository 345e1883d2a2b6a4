"""Linear layers over weights in 4 or 8 bits in groups of 32, on the C extension or on PyTorch."""

import torch
from torch import Tensor, nn

from localgemma_cli.backends.pytorch.kernels.grouped import (
    bind_grouped,
    find_grouped_rows,
    grouped_rows,
    multiply_grouped,
)
from localgemma_cli.backends.pytorch.layers.cpu_linear import BoundProduct, is_widened
from localgemma_cli.backends.pytorch.weights.groups import BLOCK, GROUP, unpack_groups

_UNPACKED = 1 << 19  # weights at a time: 2 MB in float32, which a processor's caches hold


class GroupedLinear(nn.Module):
    """[..., in] -> [..., out], in the type of its input.

    `packed` [blocks, in / 32, bytes] uint8 and `factors` [2 or 1, rows] float32 are as in kernels/grouped.h;
    rows beyond `out_features` are padding. The extension rounds its inputs to 8 bits, and a row's result is
    the same bits however many rows there are. Without it weights are unpacked, a few output features at a
    time, and inputs are not rounded.
    """

    def __init__(self, packed: Tensor, factors: Tensor, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = GROUP * packed.shape[1], out_features
        self.packed, self.factors = nn.Buffer(packed.contiguous()), nn.Buffer(factors.contiguous())
        self._rounds = packed.device.type == "cpu" and find_grouped_rows() is not None

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features)
        if self._rounds:
            multiply = grouped_rows if torch.compiler.is_compiling() else multiply_grouped
            product = multiply(rows.to(torch.bfloat16).contiguous(), self.packed, self.factors)
        else:
            product = self._multiply_unpacked(rows)
        product = product[:, : self.out_features]
        return product.reshape(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    def bind_rows(self, rows: Tensor) -> BoundProduct | None:
        if not self._rounds or rows.dtype != torch.bfloat16:
            return None
        multiply, padded = bind_grouped(rows, self.packed, self.factors)
        out = padded[:, : self.out_features]
        if out.is_contiguous():
            return multiply, out
        whole = out.contiguous()

        def call() -> None:
            multiply()
            whole.copy_(out)

        return call, whole

    def _multiply_unpacked(self, rows: Tensor) -> Tensor:
        dtype = torch.bfloat16 if rows.dtype == torch.bfloat16 and not is_widened() else torch.float32
        rows = rows.to(dtype)
        product = rows.new_empty(rows.shape[0], BLOCK * len(self.packed))
        step = max(1, _UNPACKED // (BLOCK * self.in_features))
        for first in range(0, len(self.packed), step):
            place = slice(BLOCK * first, BLOCK * (first + step))
            weights = unpack_groups(self.packed[first : first + step], self.factors[:, place])
            product[:, place] = rows @ weights.to(dtype).T
        return product

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"
