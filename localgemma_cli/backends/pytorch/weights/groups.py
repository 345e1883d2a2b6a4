"""Weights in 4 or 8 bits in groups of 32 along a row, packed as kernels/grouped.h describes."""

import torch
from torch import Tensor

BLOCK, GROUP = 32, 32  # output features that lie together, and input features that share a scale
GROUP_BYTES = {4: BLOCK * GROUP // 2 + 2 * BLOCK, 8: BLOCK * GROUP + BLOCK}  # by bits
MIDDLE = 7.5  # the level of 4 bits that is a group's offset


def pack_groups(levels: Tensor, scales: Tensor, offsets: Tensor | None) -> Tensor:
    """Pack levels [n, k], scales and offsets [n, k / 32] -> [n / 32, k / 32, GROUP_BYTES] uint8.

    With offsets in 4 bits, levels 0..15; without in 8 bits, levels -127..127. n and k are multiples of 32.
    """
    blocks, groups = len(levels) // BLOCK, levels.shape[1] // GROUP
    quads = levels.view(torch.uint8).view(blocks, BLOCK, groups, GROUP // 4, 4).permute(0, 2, 3, 1, 4)
    if offsets is not None:
        quads = quads[..., : BLOCK // 2, :] | quads[..., BLOCK // 2 :, :] << 4
    parts = [quads.reshape(blocks, groups, -1)]
    for each in (scales, offsets):
        if each is not None:
            parts.append(each.view(torch.uint8).view(blocks, BLOCK, groups).transpose(1, 2))
    return torch.cat(parts, dim=2)


def unpack_groups(packed: Tensor, factors: Tensor) -> Tensor:
    """The weights [n, k] in float32 of [n / 32, k / 32, GROUP_BYTES] uint8; factors [2 or 1, n] float32."""
    blocks, groups, size = packed.shape
    if size == GROUP_BYTES[4]:
        pairs = packed[..., : BLOCK * GROUP // 2].reshape(blocks, groups, GROUP // 4, 1, BLOCK // 2, 4)
        levels = torch.cat([pairs & 15, pairs >> 4], dim=3).float().sub_(MIDDLE)
    else:
        levels = packed[..., : BLOCK * GROUP].view(torch.int8).float()
    levels = levels.view(blocks, groups, GROUP // 4, BLOCK, 4)
    scales = _unpack_factors(packed[..., BLOCK * GROUP * bits_of(packed) // 8 :][..., :BLOCK], factors[0])
    weights = levels.mul_(scales)
    if size == GROUP_BYTES[4]:
        weights = weights.add_(_unpack_factors(packed[..., -BLOCK:].view(torch.int8), factors[1]))
    return weights.permute(0, 3, 1, 2, 4).reshape(blocks * BLOCK, groups * GROUP)


def _unpack_factors(numbers: Tensor, factors: Tensor) -> Tensor:
    """[blocks, groups, 32] times [n] float32 -> [blocks, groups, 1, 32, 1] float32."""
    return (numbers.float() * factors.view(-1, 1, BLOCK))[:, :, None, :, None]


def bits_of(packed: Tensor) -> int:
    """4 or 8, by the bytes of a group."""
    return 4 if packed.shape[2] == GROUP_BYTES[4] else 8
