"""Keys and values of a KV cache in 8 bits, and attention products that read them without unpacking.

Each token of each head has one scale: its largest absolute value divided by 127. The products run on the C
extension if it is available, else on PyTorch's int8 kernel. Both read half the bytes of bfloat16; see
docs/benchmarks.md for speed and memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels.int8 import has_int8_rows, int8_rows

MOST_TOKENS = 16  # query tokens at once; for more, unpacking and a plain matrix product are faster


@dataclass(frozen=True)
class Int8Keys:
    """Quantized keys: `levels` [heads, n, d] int8, contiguous in each head; `scales` [heads, n] bfloat16."""

    levels: Tensor
    scales: Tensor

    def scores(self, query: Tensor) -> Tensor:
        """Multiply a query [heads, rows, d] with all keys -> [heads, rows, n] float32."""
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
        """Return [1, heads, n, d] in `dtype`."""
        return self.levels.to(dtype).mul_(self.scales.unsqueeze(-1)).unsqueeze(0)


@dataclass(frozen=True)
class Int8Values:
    """Quantized values: `levels` [heads, d, capacity] int8, contiguous, and `scales` [heads, n] bfloat16.

    The n tokens are the columns of `levels` from `first` on.
    """

    levels: Tensor
    scales: Tensor
    first: int

    def mixed(self, weights: Tensor) -> Tensor:
        """Sum the values by attention weights [heads, rows, n] float32 -> [heads, rows, d].

        The result is in float32 (C extension) or bfloat16 (PyTorch). `weights` are changed in place.
        PyTorch's kernel needs whole rows of levels, so the columns outside the n tokens get weight 0.
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
        """Return [1, heads, n, d] in `dtype`."""
        levels = self.levels[..., self.first : self.first + self.scales.shape[1]]
        return levels.to(dtype).mul_(self.scales.unsqueeze(1)).transpose(1, 2).unsqueeze(0)


def quantize_states(states: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize keys or values [..., n, d] -> levels [..., n, d] int8, and scales [..., n] bfloat16.

    A token of zeros stays zero.
    """
    scales = (states.abs().amax(-1).float() / 127).clamp_(min=1e-30).to(torch.bfloat16)
    levels = (states.float() / scales.float().unsqueeze(-1)).round_().clamp_(-127, 127)
    return levels.to(torch.int8), scales
