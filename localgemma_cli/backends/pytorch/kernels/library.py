"""Load the C products of the package's extension, in the variant for this processor's vector instructions.

The extension has a variant of each product for every instruction set below, chosen at run time. A product
that gives a wrong result on this machine is not used; PyTorch's product is used instead.
"""

import ctypes
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch  # noqa: F401  (first: the extension shares the OpenMP runtime that torch brings)

from localgemma_cli.planning.host import extension_file

# fastest first, with their bits in `runnable_variants`
_VARIANTS = {"avx512_vnni": 8, "avx512": 4, "avx_vnni": 2, "avx2": 1}

LONG, POINTER = ctypes.c_long, ctypes.c_void_p
Function = Callable[..., None]
Product = TypeVar("Product")


@functools.cache
def _library() -> ctypes.CDLL | None:
    file = extension_file()
    try:
        return None if file is None else ctypes.CDLL(str(file))
    except OSError:  # built for another system, or its OpenMP runtime is missing
        return None


@functools.cache
def variants() -> tuple[str, ...]:
    """Return the variants that this processor can run, fastest first; none without the extension."""
    library = _library()
    runnable = library.runnable_variants() if library is not None else 0
    return tuple(name for name, bit in _VARIANTS.items() if runnable & bit)


def bind_function(name: str, variant: str, types: Iterable[Any]) -> Function:
    """Return a C function that takes arguments of these ctypes and returns nothing."""
    function = getattr(_library(), f"{name}_{variant}")
    function.argtypes, function.restype = tuple(types), None
    bound: Function = function
    return bound


def first_correct(products: Iterable[Product], is_correct: Callable[[Product], bool]) -> Product | None:
    """Return the first product that passes its self-check; None if there is none."""
    return next((product for product in products if is_correct(product)), None)
