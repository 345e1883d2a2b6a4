"""Products of bfloat16.c: where the processor cannot multiply bfloat16, the reference's own bits, and faster.

A `FEW` rows are computed each as if it came alone, so that a guess at the next tokens changes none of them.
"""

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels.compiled import bound, compiled
from localgemma_cli.planning.host import CPU_OWN_BF16_FLAGS

FEW = 8  # rows, as many as a round of guesses has
_BLOCK, _DEEP = 64, 768  # as in the source
GROUP, _PACKED = 64, 96  # of compact weights
_LONG, _POINTER, _INT = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
_HEADS = (*(_LONG,) * 5, _POINTER, _POINTER, _LONG, _POINTER)


class _Weights(ctypes.Structure):
    _fields_ = tuple((name, _POINTER) for name in ("plain", "packed", "bases", "raw", "firsts"))


_WEIGHTS = ctypes.POINTER(_Weights)
ARGUMENTS = {
    "compact": (*(_LONG,) * 3, *(_POINTER,) * 4),
    "keep_raw": (*(_LONG,) * 3, *(_POINTER,) * 4),
    "few_rows": (*(_LONG,) * 4, _POINTER, _WEIGHTS, _POINTER),
    "few_scores": _HEADS,
    "few_mixed": _HEADS,
    "many_rows": (*(_LONG,) * 7, _INT, _POINTER, _WEIGHTS, *(_POINTER,) * 3, _LONG),
}


@dataclass(frozen=True)
class Compact:
    """bfloat16 weights [n, k] in 12 bits each, without loss; see bfloat16.c.

    `packed` [n, k / 64, 96] and `bases` [n, k / 64] in uint8; groups without a base, `raw` [some, 64] in
    bfloat16, of which `firsts` [n] in int32 says each row's first.
    """

    packed: Tensor
    bases: Tensor
    raw: Tensor
    firsts: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """n and k"""
        return len(self.bases), GROUP * self.bases.shape[1]


@functools.cache
def products() -> ctypes.CDLL | None:
    """None where nothing compiles them, or what comes of that computes something else."""
    library = compiled("bfloat16.c", CPU_OWN_BF16_FLAGS)
    return library if library is not None and _is_right(bound(library, ARGUMENTS)) else None


def takes(width: int) -> bool:
    """Whether there are products over so many input features, or dimensions of a head."""
    return width % _BLOCK == 0 and products() is not None


def _is_right(library: ctypes.CDLL) -> bool:
    """Small products against float32's; that they are the reference's bits is for tests."""
    x = (torch.arange(9 * 832) * 37 % 101 - 40).to(torch.bfloat16).view(9, 832)
    weight = (torch.arange(100 * 832) * 29 % 83 - 20.25).to(torch.bfloat16).view(100, 832)
    expected, compact = x.float() @ weight.float().T, _compacted(library, weight)
    keys, heads = weight.view(1, 100, 832), x.view(1, 9, 832)
    got = (
        torch.cat([_few_rows(library, x[:5], weight), _few_rows(library, x[5:], weight)]),
        _many_rows(library, x, weight),
        _many_rows(library, x, weight.T.contiguous(), across=True),
        _few(library.few_scores, heads, keys, across=False)[0],
        _few(library.few_mixed, heads, keys.mT.contiguous(), across=True)[0],
    )
    unpacked = _few_rows(library, x[:5], compact), _many_rows(library, x, compact)
    if not (torch.equal(unpacked[0], got[0][:5]) and torch.equal(unpacked[1], got[1])):
        return False
    return all(bool((each.float() - expected).abs().max() < 0.01 * expected.abs().max()) for each in got)


def compacted(weight: Tensor) -> Compact:
    """Of [n, k] bfloat16, contiguous; k as `takes` says."""
    return _compacted(_there(), weight)


def _compacted(library: ctypes.CDLL, weight: Tensor) -> Compact:
    threads, (n, k) = torch.get_num_threads(), weight.shape
    packed = torch.empty((n, k // GROUP, _PACKED), dtype=torch.uint8)
    bases = torch.empty((n, k // GROUP), dtype=torch.uint8)
    counts = torch.empty(n, dtype=torch.int32)
    where = (weight.data_ptr(), packed.data_ptr(), bases.data_ptr(), counts.data_ptr())
    library.compact(threads, n, k, *where)
    firsts = counts.cumsum(0, dtype=torch.int32) - counts
    raw = weight.new_empty(int(counts.sum()), GROUP)
    where = (weight.data_ptr(), bases.data_ptr(), firsts.data_ptr(), raw.data_ptr())
    library.keep_raw(threads, n, k, *where)
    return Compact(packed, bases, raw, firsts)


def linear(x: Tensor, weight: Tensor | Compact) -> Tensor:
    """x [m, k] times weight [n, k] -> [m, n]; all contiguous, k as `takes` says."""
    return _few_rows(_there(), x, weight) if len(x) <= FEW else _many_rows(_there(), x, weight)


def attended(x: Tensor, other: Tensor, length: int, first: int, heads: int, across: bool = False) -> Tensor:
    """x [some, rows, k] times keys [some, n, k], or `across` values [some, k, n] -> [some, rows, n].

    x is contiguous, and of keys and values each head's. Of the rows of a head of keys `length` are of one
    head of queries; these are `some` of `heads` from the `first` on.
    """
    library = _there()
    if length <= FEW:
        return _few(library.few_mixed if across else library.few_scores, x, other, across)
    rows = x.shape[1]
    out = x.new_empty(*x.shape[:2], other.shape[2 if across else 1])
    for index, (each, of_head) in enumerate(zip(x, other, strict=True)):
        place = (first + index) * rows, length, heads * rows
        _many_rows(library, each, of_head, place, across, out[index])
    return out


def _there() -> ctypes.CDLL:
    library = products()
    assert library is not None  # `takes` was asked
    return library


def _pointers(weight: Tensor | Compact) -> _Weights:
    if isinstance(weight, Tensor):
        return _Weights(plain=weight.data_ptr())
    parts = (weight.packed, weight.bases, weight.raw, weight.firsts)
    return _Weights(None, *(part.data_ptr() for part in parts))


def _few_rows(library: ctypes.CDLL, x: Tensor, weight: Tensor | Compact) -> Tensor:
    (m, k), n = x.shape, weight.shape[0]
    out, wide = x.new_empty(m, n), x.float()
    library.few_rows(torch.get_num_threads(), m, n, k, wide.data_ptr(), _pointers(weight), out.data_ptr())
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
    other: Tensor | Compact,
    place: tuple[int, int, int] | None = None,
    across: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """`place`: rows before these, rows of one of PyTorch's products, and all rows, if there are others."""
    (m, k), n, threads = x.shape, other.shape[1 if across else 0], torch.get_num_threads()
    out = x.new_empty(m, n) if out is None else out
    own = 4 * _BLOCK * (_DEEP + m) + (2 * _BLOCK * k if isinstance(other, Compact) else 0)
    numbers = x.new_empty(m * k, dtype=torch.float32)
    scratch = x.new_empty(threads * own, dtype=torch.uint8)
    library.many_rows(
        *(threads, *(place or (0, m, m)), m, n, k, across),
        *(x.data_ptr(), _pointers(other), out.data_ptr(), numbers.data_ptr(), scratch.data_ptr(), own),
    )
    return out
