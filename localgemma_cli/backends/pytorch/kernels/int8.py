"""Multiply rows by keys or values in 8 bits on x86-64 CPUs; see int8.h."""

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

_ARGUMENTS = (*(LONG,) * 5, POINTER, POINTER, LONG, LONG, POINTER, LONG, POINTER)


@functools.cache
def _find_int8_rows() -> Function | None:
    return first_correct(map(bind_int8, variants()), _passes_int8_check)


def bind_int8(variant: str) -> Function:
    return bind_function("int8_rows", variant, _ARGUMENTS)


def has_int8_rows() -> bool:
    """Return whether the product below can be used on this machine."""
    return _find_int8_rows() is not None


def int8_rows(x: Tensor, levels: Tensor, scales: Tensor | None = None) -> Tensor:
    """Multiply x [heads, rows, k] float32 by levels [heads, n, at least k] int8 -> [heads, rows, n] float32.

    The result is multiplied by scales [heads, n] bfloat16, if given. x is contiguous, as are levels and
    scales in their last dimension. A row's result is the same bits for any number of rows.
    """
    product = _find_int8_rows()
    assert product is not None  # callers ask `has_int8_rows` first
    return run_int8(product, x, levels, scales)


def run_int8(product: Function, x: Tensor, levels: Tensor, scales: Tensor | None) -> Tensor:
    (heads, rows, k), n = x.shape, levels.shape[1]
    out = x.new_empty(heads, rows, n)
    factors = (None, 0) if scales is None else (scales.data_ptr(), scales.stride(0))
    where = (x.data_ptr(), levels.data_ptr(), levels.stride(0), levels.stride(1))
    product(torch.get_num_threads(), heads, rows, n, k, *where, *factors, out.data_ptr())
    return out


def _passes_int8_check(product: Function) -> bool:
    """Compare a small product with the definition."""
    x = torch.linspace(-1, 2, 2 * 5 * 75).view(2, 5, 75)
    levels = (torch.arange(2 * 7 * 80) * 37 % 255 - 127).to(torch.int8).view(2, 7, 80)
    scales = torch.linspace(0.5, 2, 14).to(torch.bfloat16).view(2, 7)
    expected = x @ levels[..., :75].float().mT
    got = run_int8(product, x, levels, None), run_int8(product, x, levels, scales)
    wanted = expected, expected * scales.float().unsqueeze(1)
    return all(
        torch.allclose(each, right, rtol=1e-4, atol=1e-2) for each, right in zip(got, wanted, strict=True)
    )
