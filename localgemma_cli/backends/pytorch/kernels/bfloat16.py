"""Multiply rows by bfloat16 weights in float32, on x86-64 CPUs without bfloat16 instructions; see bfloat16.h.

A row's result is the same bits for any number of rows, so that checking proposed tokens together changes no
answer.
"""

import ctypes
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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

GROUP, _PACKED = 64, 96  # as in bfloat16.h


class _Weights(ctypes.Structure):
    _fields_ = (
        ("plain", POINTER),
        ("stride", LONG),
        ("packed", POINTER),
        ("bases", POINTER),
        ("raw", POINTER),
    )


_ARGUMENTS = {
    "pack": (*(LONG,) * 3, *(POINTER,) * 4),
    "keep_raw": (*(LONG,) * 3, *(POINTER,) * 5),
    "bfloat16_rows": (*(LONG,) * 5, POINTER, ctypes.POINTER(_Weights), LONG, POINTER, POINTER),
}
_Functions = Mapping[str, Function]


@dataclass(frozen=True)
class CompactWeights:
    """bfloat16 weights [n, k] in 12 bits each, without loss.

    `packed` [n, k / 64, 96] and `bases` [n, k / 64] in uint8; `raw` [groups without a base, 64] in bfloat16.
    """

    packed: Tensor
    bases: Tensor
    raw: Tensor


@functools.cache
def _functions() -> _Functions | None:
    return first_correct(map(bind_variant, variants()), passes_self_check)


def bind_variant(variant: str) -> _Functions:
    """Return the C functions of one variant by name."""
    return {name: bind_function(name, variant, types) for name, types in _ARGUMENTS.items()}


def has_bfloat16_rows() -> bool:
    """Return whether the products below can be used on this machine."""
    return _functions() is not None


def can_compact(width: int) -> bool:
    """Return whether weights with so many input features can be kept in 12 bits."""
    return width % GROUP == 0 and has_bfloat16_rows()


def passes_self_check(functions: _Functions) -> bool:
    """Compare small products, of one row, some and many, plain and in 12 bits, with PyTorch's in float32."""
    x = (torch.arange(9 * 832) * 37 % 101 - 40).to(torch.bfloat16).view(1, 9, 832)
    weight = (torch.arange(99 * 832) * 29 % 83 - 20.25).to(torch.bfloat16).view(1, 99, 832)
    weight[0, 5, 70] = 0  # a group of 12 bits that is kept as it is
    uneven = weight[..., :800].contiguous(), x[..., :800].contiguous()
    whole, few = run_bfloat16(functions, x, weight), run_bfloat16(functions, x[:, 4:5], weight)
    packed = compact_weights(weight[0], functions)
    compact, some = run_bfloat16(functions, x, packed), x[:, 1:8].contiguous()
    return (
        _is_close(whole, x, weight)
        and _is_close(run_bfloat16(functions, uneven[1], uneven[0]), uneven[1], uneven[0])
        and torch.equal(few, whole[:, 4:5])
        and torch.equal(compact, whole)
        and torch.equal(run_bfloat16(functions, some, weight), whole[:, 1:8])
        and torch.equal(run_bfloat16(functions, some, packed), whole[:, 1:8])
    )


def _is_close(product: Tensor, x: Tensor, weight: Tensor) -> bool:
    expected = x.float() @ weight.float().mT
    return bool((product.float() - expected).abs().max() < 0.01 * expected.abs().max())


def compact_weights(weight: Tensor, functions: _Functions | None = None) -> CompactWeights:
    """Pack [n, k] bfloat16, contiguous, into 12 bits each; k is a multiple of 64."""
    functions = functions or _available()
    threads, (n, k) = torch.get_num_threads(), weight.shape
    packed = torch.empty((n, k // GROUP, _PACKED), dtype=torch.uint8)
    bases = torch.empty((n, k // GROUP), dtype=torch.uint8)
    counts = torch.empty(n, dtype=torch.int64)
    pointers = (weight.data_ptr(), packed.data_ptr(), bases.data_ptr())
    functions["pack"](threads, n, k, *pointers, counts.data_ptr())
    firsts = counts.cumsum(0) - counts
    raw = weight.new_empty(int(counts.sum()), GROUP)
    functions["keep_raw"](threads, n, k, *pointers, firsts.data_ptr(), raw.data_ptr())
    return CompactWeights(packed, bases, raw)


def bfloat16_rows(x: Tensor, weight: Tensor | CompactWeights) -> Tensor:
    """Multiply x [heads, m, k] by a weight [heads, n, k], or for one head [n, k] in 12 bits -> [heads, m, n].

    All are in bfloat16; x and the weight's last dimension are contiguous.
    """
    return run_bfloat16(_available(), x, weight)


def _available() -> _Functions:
    functions = _functions()
    assert functions is not None  # callers ask `has_bfloat16_rows` first
    return functions


def run_bfloat16(functions: _Functions, x: Tensor, weight: Tensor | CompactWeights) -> Tensor:
    """`bfloat16_rows` with the functions of one variant."""
    call, out = _bind(functions, x, weight)
    call()
    return out


def bind_bfloat16(x: Tensor, weight: Tensor | CompactWeights) -> tuple[Callable[[], object], Tensor]:
    """Return a call of `bfloat16_rows` that can be repeated, and the tensor that it writes its result to.

    Every call multiplies what x holds by then.
    """
    return _bind(_available(), x, weight)


def _bind(
    functions: _Functions, x: Tensor, weight: Tensor | CompactWeights
) -> tuple[Callable[[], object], Tensor]:
    heads, m, k = x.shape
    if isinstance(weight, CompactWeights):
        n, apart = len(weight.bases), 0
        parts = (weight.packed, weight.bases, weight.raw)
        pointers = _Weights(None, 0, *(part.data_ptr() for part in parts))
    else:
        n, apart = weight.shape[1], weight.stride(0)
        pointers = _Weights(weight.data_ptr(), weight.stride(1))
    out = x.new_empty(heads, m, n)
    numbers = x.new_empty(heads * m * (-(-k // GROUP) * GROUP), dtype=torch.float32)
    sizes = (torch.get_num_threads(), heads, m, n, k)
    arguments = (*sizes, x.data_ptr(), pointers, apart, out.data_ptr(), numbers.data_ptr())

    def call(_held: object = (x, weight, out, numbers)) -> None:
        functions["bfloat16_rows"](*arguments)

    return call, out
