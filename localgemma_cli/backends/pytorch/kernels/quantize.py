"""Quantize rows to 4 bits in groups of 32 on x86-64 CPUs, seven times as fast as PyTorch; see quantize.h."""

import functools

import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels.library import (
    LONG,
    POINTER,
    Function,
    bind_function,
    first_correct,
    variants,
)
from localgemma_cli.backends.pytorch.weights.groups import GROUP, pack_groups, unpack_groups
from localgemma_cli.backends.pytorch.weights.quantize_grouped import Groups, quantize_rows, shares_of_groups

_ARGUMENTS = (*(LONG,) * 2, *(POINTER,) * 7)


@functools.cache
def find_quantizer() -> Function | None:
    """Return the function for this processor; None if there is none."""
    return first_correct(map(bind_quantizer, variants()), _passes_check)


def bind_quantizer(variant: str) -> Function:
    return bind_function("quantize_rows_4", variant, _ARGUMENTS)


def quantize_fast(rows: Tensor, bits: int, importance: Tensor | None = None) -> Groups:
    """`quantize_rows` by the C function where there is one. Runs on one core."""
    quantizer = find_quantizer() if bits == 4 else None
    if quantizer is None:
        return quantize_rows(rows, bits, importance)
    return run_quantizer(quantizer, rows, importance)


def run_quantizer(quantizer: Function, rows: Tensor, importance: Tensor | None) -> Groups:
    (n, k), rows = rows.shape, rows.contiguous()
    shares = shares_of_groups(importance, k // GROUP).contiguous()
    levels = torch.empty(n, k, dtype=torch.int8)
    scales = torch.empty(n, k // GROUP, dtype=torch.uint8)
    offsets = torch.empty(n, k // GROUP, dtype=torch.int8)
    factors, fits = torch.empty(2, n), torch.empty(2, k // GROUP)
    quantizer(n, k, *(each.data_ptr() for each in (rows, shares, levels, scales, offsets, factors, fits)))
    return Groups(levels, scales, offsets, factors)


def _passes_check(quantizer: Function) -> bool:
    """Look whether each weight is within a step of what it becomes; a range has 15 steps."""
    weights = (torch.arange(32 * 2 * GROUP) * 7919 % 1000).float().view(32, -1) - 300
    found = run_quantizer(quantizer, weights, None)
    stored = unpack_groups(pack_groups(found.levels, found.scales, found.offsets), found.factors)
    return bool((stored - weights).abs().max() < 1000 / 15)
