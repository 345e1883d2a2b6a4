"""Our own product of rows with keys or values in 8 bits, of lowbit.c."""

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels.compiled import bound, compiled
from localgemma_cli.backends.pytorch.kernels.int4 import NEEDED, OPTIONS, SOURCE

_LONG, _POINTER = ctypes.c_long, ctypes.c_void_p
ARGUMENTS = {"int8_rows": (*(_LONG,) * 5, _POINTER, _POINTER, _LONG, _LONG, _POINTER, _LONG, _POINTER)}

Kernel = Callable[..., None]


@functools.cache
def kernel() -> Kernel | None:
    """For the processor's widest vectors; None where nothing compiles it, or it computes something else."""
    libraries = (compiled(SOURCE, NEEDED[block], OPTIONS[block]) for block in NEEDED)
    library = next((each for each in libraries if each is not None), None)
    if library is None:
        return None
    product: Kernel = bound(library, ARGUMENTS).int8_rows
    return product if _is_right(product) else None


def has_int8_rows() -> bool:
    return kernel() is not None


def int8_rows(x: Tensor, levels: Tensor, scales: Tensor | None = None) -> Tensor:
    """x [heads, rows, k] float32 times levels [heads, n, at least k] int8 -> [heads, rows, n] float32.

    Times scales [heads, n] bfloat16, if given. x is contiguous, levels and scales in their last dimension.
    A row's result is the same bits however many there are.
    """
    product = kernel()
    assert product is not None  # `has_int8_rows` was asked
    return _run(product, x, levels, scales)


def _run(product: Kernel, x: Tensor, levels: Tensor, scales: Tensor | None) -> Tensor:
    (heads, rows, k), n = x.shape, levels.shape[1]
    out = x.new_empty(heads, rows, n)
    factors = (None, 0) if scales is None else (scales.data_ptr(), scales.stride(0))
    where = (x.data_ptr(), levels.data_ptr(), levels.stride(0), levels.stride(1))
    product(torch.get_num_threads(), heads, rows, n, k, *where, *factors, out.data_ptr())
    return out


def _is_right(product: Kernel) -> bool:
    """A small product against its definition."""
    x = torch.linspace(-1, 2, 2 * 5 * 75).view(2, 5, 75)
    levels = (torch.arange(2 * 7 * 80) * 37 % 255 - 127).to(torch.int8).view(2, 7, 80)
    scales = torch.linspace(0.5, 2, 14).to(torch.bfloat16).view(2, 7)
    expected = x @ levels[..., :75].float().mT
    got = _run(product, x, levels, None), _run(product, x, levels, scales)
    wanted = expected, expected * scales.float().unsqueeze(1)
    return all(
        torch.allclose(each, right, rtol=1e-4, atol=1e-2) for each, right in zip(got, wanted, strict=True)
    )
