"""Call the NF4 product in bitsandbytes' C library, for CPUs with AVX512-BF16, without importing the package.

Importing bitsandbytes takes 0.8 seconds (it sets up torch.compile), more than mapping the weights of 2b, and
its operator costs 20 microseconds a call, 180 times per token. The C library needs neither.
"""

import ctypes
import functools
import sys
from importlib.util import find_spec
from pathlib import Path

import torch  # first: the library shares the OpenMP runtime that torch brings
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels.library import Function
from localgemma_cli.backends.pytorch.weights.quantize_nf4 import BLOCK, LEVELS, pack_interleaved

_SUFFIX = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
_LONG, _POINTER = ctypes.c_int64, ctypes.c_void_p
_ARGUMENTS = (_LONG, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG)


@functools.cache
def find_nf4_rows() -> Function | None:
    """Return the product; None if this processor or the installed bitsandbytes has none.

    (m, n, k, x, packed, scales, out, 64, row strides of x and out)
    """
    try:
        library = ctypes.CDLL(str(_folder() / f"libbitsandbytes_cpu.{_SUFFIX}"))
        supported, product = library.has_avx512bf16_cpu, library.gemv_4bit_inference_cpu_nf4_bf16
    except (OSError, AttributeError):  # missing, or a version with other names
        return None
    supported.restype = ctypes.c_bool
    product.argtypes, product.restype = _ARGUMENTS, None
    return product if supported() and _passes_nf4_check(product) else None


def _folder() -> Path:
    spec = find_spec("bitsandbytes")
    if spec is None or spec.origin is None:
        raise OSError("bitsandbytes is not installed")
    return Path(spec.origin).parent


def _passes_nf4_check(product: Function) -> bool:
    """Compare a small product with the definition: another version may have another layout."""
    numbers = (torch.arange(32 * 64).reshape(32, 64) * 7 % 16).to(torch.uint8)
    scales = torch.linspace(0.5, 2, 32).to(torch.bfloat16).reshape(1, 32)
    x = torch.linspace(-1, 1, 64).to(torch.bfloat16).reshape(1, 64)
    expected = (torch.from_numpy(LEVELS)[numbers.long()] * scales.float().T) @ x.float().T
    out = run_nf4(product, x, torch.from_numpy(pack_interleaved(numbers.numpy())), scales)
    return bool((out.float() - expected.T).abs().max() < 0.05 * expected.abs().max())


def run_nf4(product: Function, x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """[m, k] bfloat16, [n, k / 2] uint8, [k / 64, n] bfloat16 -> [m, n] bfloat16; all contiguous."""
    (m, k), n = x.shape, packed.shape[0]
    out = torch.empty((m, n), dtype=torch.bfloat16)
    product(m, n, k, x.data_ptr(), packed.data_ptr(), scales.data_ptr(), out.data_ptr(), BLOCK, k, n)
    return out


@torch.library.custom_op("localgemma::nf4_rows", mutates_args=())
def nf4_rows(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """`run_nf4` for torch.compile, which cannot trace into C."""
    product = find_nf4_rows()
    assert product is not None  # callers ask `find_nf4_rows` first
    return run_nf4(product, x, packed, scales)


@nf4_rows.register_fake
def _(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], packed.shape[0]))
