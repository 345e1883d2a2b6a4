"""Quantize weights to int4 in groups, with each group's scale and offset fitted to its weights.

The usual levels run from a group's smallest weight to its largest, which fits only these two exactly. Here
they cover a little less, and one step of least squares then fits scale and offset to the weights. For normal
numbers the error is 4 % smaller than with the usual levels, and 7 % smaller than NF4's. A second step would
reduce it by another 1 % and take half as long again.
"""

import numpy as np
import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.weights.quantize_nf4 import Array

GROUP = 64  # weights that share a scale and an offset: 4.5 bits per weight; groups of 32 would need 5
_SPAN = 0.95  # part of a group's range that the first levels cover


def quantize_int4(rows: Array) -> tuple[Array, Tensor]:
    """[n, k] float32 -> levels [n, k] uint8, 0..15; scales and offsets [n, k / 64, 2] bfloat16.

    k is a multiple of 64. A weight is (level - 8) * scale + offset.
    """
    count, width = rows.shape
    weights = torch.from_numpy(rows).view(-1, GROUP)
    # in numpy's memory, for the reason given in quantize_nf4.py
    levels, scratch = (torch.from_numpy(np.empty(weights.shape, dtype=np.float32)) for _ in range(2))
    least, greatest = weights.amin(1), weights.amax(1)
    steps = (greatest - least) * (_SPAN / 15)
    _round_to_levels(weights, _stack_rounded(steps, (least + greatest + steps) / 2), levels)
    middle, mean = levels.mean(1), weights.mean(1)
    covariance = torch.mul(levels, weights, out=scratch).mean(1) - middle * mean
    variance = torch.mul(levels, levels, out=scratch).mean(1) - middle * middle
    steps = torch.where(variance > 0, covariance / variance, 0)
    factors = _stack_rounded(steps, mean - steps * middle)
    _round_to_levels(weights, factors, levels)
    numbers = levels.add_(8).numpy().astype(np.uint8)
    return numbers.reshape(count, width), factors.view(count, width // GROUP, 2)


def _stack_rounded(scales: Tensor, offsets: Tensor) -> Tensor:
    """Round both to bfloat16 [groups, 2], as they are stored, so that levels are fitted to these values."""
    return torch.stack([scales, offsets], dim=1).to(torch.bfloat16)


def _round_to_levels(weights: Tensor, factors: Tensor, levels: Tensor) -> None:
    """Set `levels` to the nearest ones, -8..7; to 0 in a group whose weights are all equal."""
    scales, offsets = factors.float().unbind(1)
    inverse = torch.where(scales > 0, 1 / scales, 0)
    torch.sub(weights, offsets[:, None], out=levels).mul_(inverse[:, None]).round_().clamp_(-8, 7)
