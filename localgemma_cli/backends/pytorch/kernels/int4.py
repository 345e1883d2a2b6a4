"""Multiply rows by int4 weights on x86-64 CPUs; see int4.h.

PyTorch's product converts weights to bfloat16 or float32, and so reaches only half of the memory's bandwidth.
This one multiplies integers, with the rows rounded to 8 bits.
"""

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

_PART = 12  # bytes of a `Part` in int4.h
_ARGUMENTS = (*(LONG,) * 5, *(POINTER,) * 6)


@functools.cache
def find_int4_rows(block: int | None) -> Function | None:
    """Return the product for weights packed by `block`; None if there is none for this processor.

    (threads, m, n, k, group, x, packed, factors, out, and two pointers to scratch memory)
    """
    if block is None:
        return None
    return first_correct(map(bind_int4, variants(block)), lambda each: _passes_int4_check(each, block))


def bind_int4(variant: str) -> Function:
    return bind_function("int4_rows", variant, _ARGUMENTS)


def _passes_int4_check(product: Function, block: int) -> bool:
    """Compare small products, of one row and of a few, with the definition."""
    n, k, group = 2 * block, 128, 32
    numbers = (torch.arange(n * k).reshape(n, k) * 7 % 61 % 16).to(torch.uint8)
    factors = torch.linspace(-1, 2, k // group * n * 2).to(torch.bfloat16).reshape(k // group, n, 2)
    scales, offsets = factors.float().permute(2, 1, 0).unsqueeze(-1)
    weights = ((numbers.float() - 8).view(n, -1, group) * scales + offsets).view(n, k)
    packed = interleave_levels(numbers, block)
    x = torch.linspace(-1, 1.5, 5 * k).to(torch.bfloat16).reshape(5, k)
    expected = x.float() @ weights.T
    few, one = run_int4(product, x, packed, factors), run_int4(product, x[2:3], packed, factors)
    near = (few.float() - expected).abs().max() < 0.02 * expected.abs().max()
    return bool(near) and torch.equal(one[0], few[2])


def interleave_levels(levels: Tensor, block: int) -> Tensor:
    """Pack [n, k] -> [n, k / 2] as PyTorch does, three times as fast; n is a multiple of `block`.

    For every input feature, a block's first rows are the low halves of bytes, the others the high ones.
    """
    rows, width = levels.shape
    halves = levels.view(-1, 2, block // 2, width)
    pairs = halves[:, 0] | halves[:, 1] << 4
    return pairs.transpose(1, 2).reshape(rows, width // 2).contiguous()  # with a single block it is a view


def run_int4(product: Function, x: Tensor, packed: Tensor, factors: Tensor) -> Tensor:
    """[m, k] bfloat16, [n, k / 2] uint8, [k / group, n, 2] bfloat16 -> [m, n] bfloat16; all contiguous."""
    (m, k), groups, n = x.shape, factors.shape[0], packed.shape[0]
    out = torch.empty((m, n), dtype=torch.bfloat16)
    scratch = torch.empty(m * (k + _PART * groups), dtype=torch.uint8)
    rounded = scratch.data_ptr()
    pointers = (x.data_ptr(), packed.data_ptr(), factors.data_ptr(), out.data_ptr(), rounded, rounded + m * k)
    product(torch.get_num_threads(), m, n, k, k // groups, *pointers)
    return out


def multiply_int4(x: Tensor, packed: Tensor, factors: Tensor, block: int) -> Tensor:
    """Call `run_int4` with the product for this processor."""
    product = find_int4_rows(block)
    assert product is not None  # callers ask `find_int4_rows` first
    return run_int4(product, x, packed, factors)


# The same for torch.compile, which cannot trace into C.
int4_rows = torch.library.custom_op("localgemma::int4_rows", multiply_int4, mutates_args=())


@int4_rows.register_fake
def _(x: Tensor, packed: Tensor, factors: Tensor, block: int) -> Tensor:
    return x.new_empty((x.shape[0], packed.shape[0]))
