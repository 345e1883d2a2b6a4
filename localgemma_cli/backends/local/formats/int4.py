"""Linear layers over 4-bit weights with a scale and a zero point per group, on PyTorch's own kernels.

A weight is (q - zero) * scale with q in 0..15. The kernels compute (q - 8) * scale + offset in bfloat16, so
the offset is (8 - zero) * scale.
"""

from functools import cache

import torch
from torch import nn

GROUPS = (32, 64, 128, 256)  # sizes that the kernels know
_ROW_BLOCKS = (64, 32)  # output features that lie together on a CPU: with AVX-512, with AVX2
_UNPACK_FROM = 128  # rows; the kernels are made for few, and a prompt is a matrix product worth unpacking for
_TILES = 8  # of 16 input features; the CUDA kernel's own parameter


class Int4Linear(nn.Module):
    """[..., in] -> [..., out]; computes in bfloat16 and answers in the type of its input."""

    def __init__(self, levels: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, device: str) -> None:
        """`levels` [out, in] in uint8, 0..15; `scales` and `zeros` [in / group, out] in float32."""
        super().__init__()
        self.out_features, self.in_features = levels.shape
        self.group = self.in_features // scales.shape[0]
        offsets = (8 - zeros) * scales
        self.packed = nn.Buffer(_pack(levels.to(device)))
        self.scales = nn.Buffer(torch.stack([scales, offsets], dim=-1).to(device, torch.bfloat16))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, self.in_features).to(torch.bfloat16)
        return self._product(rows).view(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        if not rows.is_cuda:
            block = _row_block()
            if block and self.out_features % block == 0 and rows.shape[0] >= _UNPACK_FROM:
                return nn.functional.linear(rows, self._unpacked(block))
            kernel = torch.ops.aten._weight_int4pack_mm_for_cpu
        else:
            kernel = torch.ops.aten._weight_int4pack_mm
        product: torch.Tensor = kernel(rows, self.packed, self.group, self.scales)
        return product

    def _unpacked(self, block: int) -> torch.Tensor:
        """The weight as the kernel sees it, [out, in]."""
        levels = _unpack(self.packed, block).view(self.out_features, -1, self.group)
        scales, offsets = (self.scales[..., part].T.unsqueeze(-1) for part in (0, 1))
        weight = torch.addcmul(offsets, (levels.to(torch.int8) - 8).to(torch.bfloat16), scales)
        return weight.reshape(self.out_features, self.in_features)


def can_keep(levels: torch.Tensor, group: int) -> bool:
    """Whether the kernels take a weight [out, in] of that shape."""
    rows, columns = levels.shape
    return group in GROUPS and rows % 16 == 0 and columns % (16 * _TILES) == 0


def _pack(levels: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor
    if levels.is_cuda:
        pairs = levels[:, ::2] << 4 | levels[:, 1::2]
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, _TILES)
    else:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32), 1)
    return packed


def _unpack(packed: torch.Tensor, block: int) -> torch.Tensor:
    """[out, in]: for every input feature, a block's first rows are low halves, the others high."""
    rows, half = packed.shape
    pairs = packed.view(rows // block, 2 * half, block // 2).transpose(1, 2).contiguous()
    return torch.cat([pairs & 15, pairs >> 4], dim=1).view(rows, 2 * half)


@cache
def _row_block() -> int | None:
    """How many rows the packing of this processor interleaves; None where it is none that is known here."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 16, (128, 128), dtype=torch.uint8, generator=generator)
    packed = _pack(levels)
    return next((block for block in _ROW_BLOCKS if torch.equal(_unpack(packed, block), levels)), None)
