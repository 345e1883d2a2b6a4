"""bfloat16 where the processor has no instructions for it: read as it is, multiplied in float32.

Weights are half of float32's bytes. oneDNN's own bfloat16 products take four times as long there as ours of
bfloat16.c. Where those cannot be had, one row is PyTorch's product, which reads at the memory's bandwidth,
and for a prompt weights are widened a few output features at a time, in the processor's cache. See
docs/benchmarks.md.
"""

from functools import cache

import torch
from torch import Tensor, nn

from localgemma_cli.backends.pytorch.kernels import bfloat16 as bfloat16_kernel
from localgemma_cli.backends.pytorch.kernels.bfloat16 import Compact
from localgemma_cli.backends.pytorch.weights.mmap_tensors import in_file
from localgemma_cli.planning.host import CPU_BF16_FLAGS, cpu_flags

_ONE_BY_ONE = 3  # rows; up to so many, reading the weights for each is the faster way
_WIDENED = 1 << 20  # weights at a time: 4 MB, which the processor's caches hold


@cache
def is_widened() -> bool:
    """Whether this processor has to multiply bfloat16 in float32; False where the system does not tell."""
    flags = cpu_flags()
    return flags is not None and not flags & CPU_BF16_FLAGS


class CompactLinear(nn.Module):
    """`nn.Linear` without a bias over the same weights in 12 bits each; [..., in] -> [..., out], bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        compact = bfloat16_kernel.compacted(linear.weight.detach().contiguous())
        self.packed, self.bases = nn.Buffer(compact.packed), nn.Buffer(compact.bases)
        self.raw, self.firsts = nn.Buffer(compact.raw), nn.Buffer(compact.firsts)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features).contiguous()
        weight = Compact(self.packed, self.bases, self.raw, self.firsts)
        return bfloat16_kernel.linear(rows, weight).view(*inputs.shape[:-1], self.out_features)


class WidenedLinear(nn.Module):
    """`nn.Linear` without a bias over the same weight; [..., in] -> [..., out], bfloat16, no gradient.

    Sums are in float32 and rounded once, as in a bfloat16 product: our own products are the same bits, others
    add in another order.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        # pages of a file lie scattered: reading them takes a sixth more time
        self.weight = nn.Buffer(weight.clone() if in_file(weight) else weight.contiguous())
        self._ours = bfloat16_kernel.takes(self.in_features)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features)
        if self._ours and not torch.compiler.is_compiling():
            product = bfloat16_kernel.linear(rows.contiguous(), self.weight)
        elif len(rows) <= _ONE_BY_ONE:
            product = torch.stack([torch.mv(self.weight, row) for row in rows])
        else:
            product = self._by_pieces(rows)
        return product.view(*inputs.shape[:-1], self.out_features)

    def _by_pieces(self, rows: Tensor) -> Tensor:
        product = rows.new_empty(len(rows), self.out_features)
        wide = rows.float()
        step = max(1, _WIDENED // self.in_features)
        scratch = wide.new_empty(min(step, self.out_features), self.in_features)  # fresh memory is slow
        for first in range(0, self.out_features, step):
            piece = self.weight[first : first + step]
            widened = scratch[: len(piece)].copy_(piece)
            product[:, first : first + step] = wide @ widened.T
        return product
