"""Products of bfloat16.c: where the processor cannot multiply bfloat16, the reference's own bits, and faster.

A `FEW` rows are computed each as if it came alone, so that a guess at the next tokens changes none of them.
"""

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from localgemma_cli.backends.local.compiled import compiled

FEW = 8  # rows, as many as a round of guesses has
_NEEDED = frozenset({"avx512bw", "avx512dq", "avx512vl", "fma"})
_BLOCK, _DEEP = 64, 768  # as in the source
_LONG, _POINTER, _INT = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
_HEADS = (*(_LONG,) * 5, _POINTER, _POINTER, _LONG, _POINTER)
_ARGUMENTS = {
    "few_rows": (*(_LONG,) * 4, *(_POINTER,) * 3),
    "few_scores": _HEADS,
    "few_mixed": _HEADS,
    "many_rows": (*(_LONG,) * 7, _INT, _POINTER, _POINTER, _LONG, *(_POINTER,) * 3),
}


@functools.cache
def products() -> ctypes.CDLL | None:
    """None where nothing compiles them, or what comes of that computes something else."""
    library = compiled("bfloat16.c", _NEEDED)
    return library if library is not None and _is_right(_bound(library)) else None


def _bound(library: ctypes.CDLL) -> ctypes.CDLL:
    """With the types of its functions."""
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library


def takes(width: int) -> bool:
    """Whether there are products over so many input features, or dimensions of a head."""
    return width % _BLOCK == 0 and products() is not None


def _is_right(library: ctypes.CDLL) -> bool:
    """Small products against float32's; that they are the reference's bits is for tests."""
    x = (torch.arange(9 * 832) * 37 % 101 - 40).to(torch.bfloat16).view(9, 832)
    weight = (torch.arange(100 * 832) * 29 % 83 - 20).to(torch.bfloat16).view(100, 832)
    expected = x.float() @ weight.float().T
    keys, heads = weight.view(1, 100, 832), x.view(1, 9, 832)
    got = (
        torch.cat([_few_rows(library, x[:5], weight), _few_rows(library, x[5:], weight)]),
        _many_rows(library, x, weight, 9),
        _many_rows(library, x, weight.T.contiguous(), 9, across=True),
        _few(library.few_scores, heads, keys, across=False)[0],
        _few(library.few_mixed, heads, keys.mT.contiguous(), across=True)[0],
    )
    return all(bool((each.float() - expected).abs().max() < 0.01 * expected.abs().max()) for each in got)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [m, k] times weight [n, k] -> [m, n]; all contiguous, k as `takes` says."""
    return _few_rows(_there(), x, weight) if len(x) <= FEW else _many_rows(_there(), x, weight, x.shape[0])


def attended(x: Tensor, other: Tensor, length: int, first: int, heads: int, across: bool = False) -> Tensor:
    """x [some, rows, k] times keys [some, n, k], or `across` values [some, k, n] -> [some, rows, n].

    x is contiguous, and of keys and values each head's. Of the rows of a head of keys `length` are of one
    head of queries; these are `some` of `heads` from the `first` on.
    """
    library = _there()
    if length <= FEW:
        return _few(library.few_mixed if across else library.few_scores, x, other, across)
    rows = x.shape[1]
    return torch.stack(
        [
            _many_rows(library, each, of_head, length, (first + index) * rows, heads * rows, across)
            for index, (each, of_head) in enumerate(zip(x, other, strict=True))
        ]
    )


def _there() -> ctypes.CDLL:
    library = products()
    assert library is not None  # `takes` was asked
    return library


def _few_rows(library: ctypes.CDLL, x: Tensor, weight: Tensor) -> Tensor:
    (m, k), n = x.shape, len(weight)
    out, wide = x.new_empty(m, n), x.float()
    library.few_rows(torch.get_num_threads(), m, n, k, wide.data_ptr(), weight.data_ptr(), out.data_ptr())
    return out


def _few(product: Callable[..., None], x: Tensor, other: Tensor, across: bool) -> Tensor:
    some, rows, k = x.shape
    n = other.shape[2 if across else 1]
    out = x.new_empty(some, rows, n)
    sizes = (some, rows, *((k, n) if across else (n, k)))
    product(torch.get_num_threads(), *sizes, x.data_ptr(), other.data_ptr(), other.stride(0), out.data_ptr())
    return out


def _many_rows(
    library: ctypes.CDLL,
    x: Tensor,
    other: Tensor,
    together: int,
    before: int = 0,
    all_rows: int | None = None,
    across: bool = False,
) -> Tensor:
    (m, k), n, threads = x.shape, other.shape[1 if across else 0], torch.get_num_threads()
    out = x.new_empty(m, n)
    numbers = x.new_empty(m * k, dtype=torch.float32)
    packed = x.new_empty(threads * (_DEEP + m) * _BLOCK, dtype=torch.float32)
    library.many_rows(
        *(threads, before, together, all_rows or m, m, n, k, across),
        *(x.data_ptr(), other.data_ptr(), other.stride(0), out.data_ptr()),
        *(numbers.data_ptr(), packed.data_ptr()),
    )
    return out
