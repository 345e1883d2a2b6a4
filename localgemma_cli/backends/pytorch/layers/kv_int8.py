"""Keys and values of a KV cache in 8 bits, and the attention products over them as they lie.

Each token of each head has one scale, its largest number over 127. Our kernel, or else PyTorch's, reads one
byte where bfloat16 is two; see docs/benchmarks.md for what that costs in quality, and what a step gains.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels.int8 import has_int8_rows, int8_rows

MOST_TOKENS = 16  # at once; above, unpacking and a plain matrix product take less time


@dataclass(frozen=True)
class Int8Keys:
    """`levels` [heads, n, d] int8, each head's rows contiguous; `scales` [heads, n] bfloat16."""

    levels: Tensor
    scales: Tensor

    def scores(self, query: Tensor) -> Tensor:
        """[heads, rows, d] -> [heads, rows, n] float32."""
        if has_int8_rows():
            return int8_rows(query.float(), self.levels, self.scales)
        rows = query.to(torch.bfloat16)
        return torch.stack(
            [
                torch._weight_int8pack_mm(row, levels, scales)
                for row, levels, scales in zip(rows, self.levels, self.scales, strict=True)
            ]
        ).float()

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """[1, heads, n, d]"""
        return self.levels.to(dtype).mul_(self.scales.unsqueeze(-1)).unsqueeze(0)


@dataclass(frozen=True)
class Int8Values:
    """`levels` [heads, d, capacity] int8, contiguous; of its columns `first` on are n tokens with `scales`
    [heads, n] bfloat16."""

    levels: Tensor
    scales: Tensor
    first: int

    def mixed(self, weights: Tensor) -> Tensor:
        """[heads, rows, n] float32, which are changed -> [heads, rows, d] bfloat16 or float32.

        PyTorch's kernel wants whole rows of levels: tokens that are not attended to weigh nothing.
        """
        heads, rows, count = weights.shape
        if has_int8_rows():
            return int8_rows(weights.mul_(self.scales.unsqueeze(1)), self.levels[..., self.first :])
        width, capacity = self.levels.shape[1:]
        scaled = torch.zeros((heads, rows, capacity), dtype=torch.bfloat16)
        scaled[..., self.first : self.first + count] = weights.mul_(self.scales.unsqueeze(1))
        ones = torch.ones(width, dtype=torch.bfloat16)
        return torch.stack(
            [
                torch._weight_int8pack_mm(row, levels, ones)
                for row, levels in zip(scaled, self.levels, strict=True)
            ]
        )

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """[1, heads, n, d]"""
        levels = self.levels[..., self.first : self.first + self.scales.shape[1]]
        return levels.to(dtype).mul_(self.scales.unsqueeze(1)).transpose(1, 2).unsqueeze(0)


def quantized(states: Tensor) -> tuple[Tensor, Tensor]:
    """[..., n, d] -> levels [..., n, d] int8 and scales [..., n] bfloat16; a token of zeros stays one."""
    scales = (states.abs().amax(-1).float() / 127).clamp_(min=1e-30).to(torch.bfloat16)
    levels = (states.float() / scales.float().unsqueeze(-1)).round_().clamp_(-127, 127)
    return levels.to(torch.int8), scales
