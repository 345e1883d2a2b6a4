"""Multiply rows by weights in 4 or 8 bits on x86-64 CPUs; see grouped.h for the format and the product.

The rows are rounded to 8 bits and multiplied as integers.
"""

import functools
from collections.abc import Callable

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
from localgemma_cli.backends.pytorch.weights.groups import (
    BLOCK,
    GROUP,
    GROUP_BYTES,
    bits_of,
    pack_groups,
    unpack_groups,
)

_PART = 12  # bytes of a `Part` in grouped.h
_ARGUMENTS = (*(LONG,) * 5, *(POINTER,) * 6)


@functools.cache
def find_grouped_rows() -> Function | None:
    """Return the product for this processor; None if there is none.

    (threads, bits, m, n, k, x, packed, factors, out, and two pointers to scratch memory)
    """
    return first_correct(map(bind_variant, variants()), _passes_check)


def bind_variant(variant: str) -> Function:
    return bind_function("grouped_rows", variant, _ARGUMENTS)


def _passes_check(product: Function) -> bool:
    return all(_is_correct(product, bits) for bits in GROUP_BYTES)


def _is_correct(product: Function, bits: int) -> bool:
    """Compare small products, of one row and of a few, with the definition."""
    n, k = 2 * BLOCK, 4 * GROUP
    numbers = torch.arange(n * k * 5).reshape(5, -1) * 7 % 251
    levels = (numbers[0] % 16 if bits == 4 else numbers[0] - 125).to(torch.int8).view(n, k)
    scales = numbers[1, : n * 4].view(n, 4).byte()
    offsets = (numbers[2, : n * 4] - 125).view(n, 4).to(torch.int8)
    packed = pack_groups(levels, scales, offsets if bits == 4 else None)
    factors = torch.linspace(0.01, 0.02, n).repeat(2 if bits == 4 else 1, 1)
    x = torch.linspace(-1, 1.5, 5 * k).to(torch.bfloat16).reshape(5, k)
    expected = x.float() @ unpack_groups(packed, factors).T
    few, one = run_grouped(product, x, packed, factors), run_grouped(product, x[2:3], packed, factors)
    near = (few.float() - expected).abs().max() < 0.02 * expected.abs().max()
    return bool(near) and torch.equal(one[0], few[2])


def run_grouped(product: Function, x: Tensor, packed: Tensor, factors: Tensor) -> Tensor:
    """[m, k] bfloat16, [n / 32, k / 32, GROUP_BYTES] uint8, [2 or 1, n] float32 -> [m, n] bfloat16.

    All are contiguous.
    """
    call, out = _bind(product, x, packed, factors)
    call()
    return out


def bind_grouped(x: Tensor, packed: Tensor, factors: Tensor) -> tuple[Callable[[], object], Tensor]:
    """Return a call of the product that can be repeated, and the tensor that it writes its result to.

    Every call multiplies what x holds by then.
    """
    product = find_grouped_rows()
    assert product is not None  # callers ask `find_grouped_rows` first
    return _bind(product, x, packed, factors)


def _bind(
    product: Function, x: Tensor, packed: Tensor, factors: Tensor
) -> tuple[Callable[[], object], Tensor]:
    (m, k), n = x.shape, factors.shape[1]
    out = torch.empty((m, n), dtype=torch.bfloat16)
    scratch = torch.empty(m * (k + _PART * (k // GROUP)), dtype=torch.uint8)
    held = (x, packed, factors, out, scratch)  # as long as the call, which has their addresses
    rounded = scratch.data_ptr()
    pointers = (*(each.data_ptr() for each in held[:4]), rounded, rounded + m * k)
    arguments = (torch.get_num_threads(), bits_of(packed), m, n, k, *pointers)

    def call(_: object = held) -> None:
        product(*arguments)

    return call, out


def multiply_grouped(x: Tensor, packed: Tensor, factors: Tensor) -> Tensor:
    """Call `run_grouped` with the product for this processor."""
    call, out = bind_grouped(x, packed, factors)
    call()
    return out


# The same for torch.compile, which cannot trace into C.
grouped_rows = torch.library.custom_op("localgemma::grouped_rows", multiply_grouped, mutates_args=())


@grouped_rows.register_fake
def _(x: Tensor, packed: Tensor, factors: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], factors.shape[1]))
