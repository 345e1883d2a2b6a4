"""The compiled 4-bit product of bitsandbytes for processors with AVX512-BF16, called without the package.

Importing bitsandbytes takes 0.8 seconds (it sets up torch.compile), more than mapping a 2b's weights, and its
operator costs 20 microseconds per call, 180 times per token. The library beside it needs neither.
"""

import ctypes
import functools
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch  # before the library: it brings the OpenMP runtime that both share
from torch import Tensor

from localgemma_cli.backends.pytorch.weights.quantize_nf4 import BLOCK, LEVELS, interleaved

_SUFFIX = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
_LONG, _POINTER = ctypes.c_int64, ctypes.c_void_p
_ARGUMENTS = (_LONG, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG)

Kernel = Callable[..., None]


@functools.cache
def kernel() -> Kernel | None:
    """(m, n, k, x, packed, scales, out, 64, row strides of x and out); None where it cannot be used here."""
    try:
        library = ctypes.CDLL(str(_folder() / f"libbitsandbytes_cpu.{_SUFFIX}"))
        supported, product = library.has_avx512bf16_cpu, library.gemv_4bit_inference_cpu_nf4_bf16
    except (OSError, AttributeError):  # not there, or of a version with other names
        return None
    supported.restype = ctypes.c_bool
    product.argtypes, product.restype = _ARGUMENTS, None
    return product if supported() and _is_right(product) else None


def _folder() -> Path:
    spec = find_spec("bitsandbytes")
    if spec is None or spec.origin is None:
        raise OSError("bitsandbytes is not installed")
    return Path(spec.origin).parent


def _is_right(product: Kernel) -> bool:
    """One small product against its definition: a library with another layout must not compute answers."""
    numbers = (torch.arange(32 * 64).reshape(32, 64) * 7 % 16).to(torch.uint8)
    scales = torch.linspace(0.5, 2, 32).to(torch.bfloat16).reshape(1, 32)
    x = torch.linspace(-1, 1, 64).to(torch.bfloat16).reshape(1, 64)
    expected = (torch.from_numpy(LEVELS)[numbers.long()] * scales.float().T) @ x.float().T
    out = run(product, x, torch.from_numpy(interleaved(numbers.numpy())), scales)
    return bool((out.float() - expected.T).abs().max() < 0.05 * expected.abs().max())


def run(product: Kernel, x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """[m, k] bfloat16, [n, k / 2] uint8, [k / 64, n] bfloat16 -> [m, n] bfloat16; all contiguous."""
    (m, k), n = x.shape, packed.shape[0]
    out = torch.empty((m, n), dtype=torch.bfloat16)
    product(m, n, k, x.data_ptr(), packed.data_ptr(), scales.data_ptr(), out.data_ptr(), BLOCK, k, n)
    return out


@torch.library.custom_op("localgemma::nf4_rows", mutates_args=())
def nf4_rows(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """`run` as torch.compile can see it."""
    product = kernel()
    assert product is not None  # modules that come here are made only where there is one
    return run(product, x, packed, scales)


@nf4_rows.register_fake
def _(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], packed.shape[0]))
