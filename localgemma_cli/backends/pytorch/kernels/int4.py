"""Our own int4 product for x86 processors, of lowbit.c.

PyTorch's product turns weights into bfloat16 or float32 and is bound by arithmetic at half of what memory
gives. This one multiplies them as integers with rows rounded to 8 bits. Where nothing compiles it, or what
comes of that computes something else, there is none, and PyTorch's is taken.
"""

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels.compiled import bound, compiled

SOURCE = "lowbit.c"
# by the block of output features that PyTorch packs by
NEEDED = {64: frozenset({"avx512bw", "fma"}), 32: frozenset({"avx2", "fma"})}
OPTIONS: dict[int, tuple[str, ...]] = {64: (), 32: ("-mno-avx512f",)}
_PART = 12  # bytes of a `Part` in the source
_LONG, _POINTER = ctypes.c_long, ctypes.c_void_p
ARGUMENTS = {"int4_rows": (*(_LONG,) * 5, *(_POINTER,) * 6)}

Kernel = Callable[..., None]


@functools.cache
def kernel(block: int | None) -> Kernel | None:
    """(threads, m, n, k, group, x, packed, factors, out, and two of scratch) on weights packed by `block`."""
    if block is None or (library := compiled(SOURCE, NEEDED[block], OPTIONS[block])) is None:
        return None
    product: Kernel = bound(library, ARGUMENTS).int4_rows
    return product if _is_right(product, block) else None


def _is_right(product: Kernel, block: int) -> bool:
    """A small product against its definition, one row and a few: another layout must not compute answers."""
    n, k, group = 2 * block, 128, 32
    numbers = (torch.arange(n * k).reshape(n, k) * 7 % 61 % 16).to(torch.uint8)
    factors = torch.linspace(-1, 2, k // group * n * 2).to(torch.bfloat16).reshape(k // group, n, 2)
    scales, offsets = factors.float().permute(2, 1, 0).unsqueeze(-1)
    weights = ((numbers.float() - 8).view(n, -1, group) * scales + offsets).view(n, k)
    packed = interleaved(numbers, block)
    x = torch.linspace(-1, 1.5, 5 * k).to(torch.bfloat16).reshape(5, k)
    expected = x.float() @ weights.T
    few, one = run(product, x, packed, factors), run(product, x[2:3], packed, factors)
    near = (few.float() - expected).abs().max() < 0.02 * expected.abs().max()
    return bool(near) and torch.equal(one[0], few[2])


def interleaved(levels: Tensor, block: int) -> Tensor:
    """[n, k] -> [n, k / 2] as PyTorch packs it, three times as fast; n by `block`.

    For every input feature, a block's first rows are low halves, the others high.
    """
    rows, width = levels.shape
    halves = levels.view(-1, 2, block // 2, width)
    pairs = halves[:, 0] | halves[:, 1] << 4
    return pairs.transpose(1, 2).reshape(rows, width // 2).contiguous()  # of one block it is a view


def run(product: Kernel, x: Tensor, packed: Tensor, factors: Tensor) -> Tensor:
    """[m, k] bfloat16, [n, k / 2] uint8, [k / group, n, 2] bfloat16 -> [m, n] bfloat16; all contiguous."""
    (m, k), groups, n = x.shape, factors.shape[0], packed.shape[0]
    out = torch.empty((m, n), dtype=torch.bfloat16)
    scratch = torch.empty(m * (k + _PART * groups), dtype=torch.uint8)
    rounded = scratch.data_ptr()
    pointers = (x.data_ptr(), packed.data_ptr(), factors.data_ptr(), out.data_ptr(), rounded, rounded + m * k)
    product(torch.get_num_threads(), m, n, k, k // groups, *pointers)
    return out


def rows_times(x: Tensor, packed: Tensor, factors: Tensor, block: int) -> Tensor:
    """`run` of the kernel that there is."""
    product = kernel(block)
    assert product is not None  # modules that come here are made only where there is one
    return run(product, x, packed, factors)


# As torch.compile can see it.
int4_rows = torch.library.custom_op("localgemma::int4_rows", rows_times, mutates_args=())


@int4_rows.register_fake
def _(x: Tensor, packed: Tensor, factors: Tensor, block: int) -> Tensor:
    return x.new_empty((x.shape[0], packed.shape[0]))
