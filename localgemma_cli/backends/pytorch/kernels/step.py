"""What a decoding step computes between its products, in C on x86-64 CPUs; see step.h.

The same operations cost transformers about a millisecond per layer, more than the products of a small model.
"""

import ctypes
from collections.abc import Mapping

from localgemma_cli.backends.pytorch.kernels.library import LONG, POINTER, Function, bind_function

LANES = 8  # rows have a multiple of this many numbers
_FLOAT = ctypes.c_float
StepFunctions = Mapping[str, Function]


class AttentionShape(ctypes.Structure):
    """`Attention` in step.h; all pointers are to bfloat16."""

    _fields_ = (
        *((name, LONG) for name in ("heads", "kv_heads", "width")),
        *((name, _FLOAT) for name in ("scaling", "softcap", "epsilon")),
        *((name, POINTER) for name in ("query_norm", "key_norm", "query", "key", "value", "out")),
    )


class CachedTokens(ctypes.Structure):
    """`Cached` in step.h."""

    _fields_ = (
        ("keys", POINTER),
        ("values", POINTER),
        *((name, LONG) for name in ("keys_next", "values_next", "stride")),
        ("scales", POINTER),
        *((name, LONG) for name in ("scales_next", "first", "end")),
        *((name, POINTER) for name in ("scores", "numbers", "cosines", "sines")),
    )


_ARGUMENTS = {
    "add_norm": (LONG, LONG, _FLOAT, *(POINTER,) * 5),  # rows, n, epsilon, state, added, after, weight, out
    "gate": (LONG, LONG, *(POINTER,) * 3),  # threads, n, gate, up, out
    "attend_rows": (  # threads, rows, shape, tokens of each row
        LONG,
        LONG,
        ctypes.POINTER(AttentionShape),
        ctypes.POINTER(CachedTokens),
    ),
}


def bind_step(variant: str) -> StepFunctions:
    """Return the C functions of one variant by name."""
    return {name: bind_function(name, variant, types) for name, types in _ARGUMENTS.items()}
