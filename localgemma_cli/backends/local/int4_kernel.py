"""Our own int4 product for x86 processors: int4.c, compiled at first use by the machine's C compiler.

PyTorch's product turns weights into bfloat16 or float32 and is bound by arithmetic at half of what memory
gives. This one multiplies them as integers with rows rounded to 8 bits. Where nothing compiles it, or what
comes of that computes something else, there is none, and PyTorch's is taken.
"""

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch  # before the library: it brings the OpenMP runtime that both share
from torch import Tensor

from localgemma_cli.environment import cache_folder
from localgemma_cli.planning.host import c_compiler, cpu_flags

_SOURCE = Path(__file__).with_name("int4.c")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_FLAGS_OF = {64: (), 32: ("-mno-avx512f",)}  # by the block of output features that PyTorch packs by
_NEEDED = {64: {"avx512bw", "fma"}, 32: {"avx2", "fma"}}
_PATIENCE = 30  # seconds for a compiler that takes half of one
_PART = 12  # bytes of a `Part` in the source
_DIGEST = hashlib.sha256().digest_size
_LONG, _POINTER = ctypes.c_long, ctypes.c_void_p
_ARGUMENTS = (_LONG, _LONG, _LONG, _LONG, _LONG, *(_POINTER,) * 6)

Kernel = Callable[..., None]


@functools.cache
def kernel(block: int | None) -> Kernel | None:
    """(threads, m, n, k, group, x, packed, factors, out, and two of scratch) on weights packed by `block`."""
    if block is None or sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    flags = cpu_flags() or frozenset()
    if not flags >= _NEEDED[block]:
        return None
    try:
        if not (compiler := c_compiler()):
            return None
        told = (*compiler, _version(compiler), *_FLAGS_OF[block], *sorted(flags), torch.__version__)
        key = hashlib.sha256("\n".join((*told, _SOURCE.read_text())).encode()).hexdigest()[:32]
        product = _product((*compiler, *_FLAGS, *_FLAGS_OF[block]), f"int4-{key}.so")
    except (OSError, subprocess.SubprocessError):  # a compiler that cannot
        return None
    return product if _is_right(product, block) else None


def _version(compiler: tuple[str, ...]) -> str:
    asked = subprocess.run([*compiler, "--version"], capture_output=True, timeout=_PATIENCE, check=True)
    return asked.stdout.decode(errors="replace").partition("\n")[0]


def _product(command: tuple[str, ...], name: str) -> Kernel:
    """From the cache, or else made for it; made for this process alone where the cache cannot be used."""
    try:
        folder = cache_folder() / "kernels"
        folder.mkdir(mode=0o700, exist_ok=True)
        if not _is_ours(folder):
            raise PermissionError(f"others may write to {folder}")
        if not _is_whole(folder / name):
            _compile(command, folder / name)
        return _open(folder / name)
    except OSError:
        with tempfile.TemporaryDirectory() as own:  # what is open stays so
            _compile(command, Path(own) / name)
            return _open(Path(own) / name)


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can put code there."""
    about = folder.stat()
    return about.st_uid == os.getuid() and not about.st_mode & 0o022


def _compile(command: tuple[str, ...], library: Path) -> None:
    """Its digest goes behind it, where no loader looks: what is cut short would end the process."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        words = (*command, "-o", str(made), str(_SOURCE))
        subprocess.run(words, capture_output=True, timeout=_PATIENCE, check=True)
        content = made.read_bytes()
        made.write_bytes(content + hashlib.sha256(content).digest())
        os.replace(made, library)


def _is_whole(library: Path) -> bool:
    try:
        content = library.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _open(library: Path) -> Kernel:
    try:
        product = ctypes.CDLL(str(library)).int4_rows
    except AttributeError as error:
        raise OSError(f"{library} has no such function") from error
    product.argtypes, product.restype = _ARGUMENTS, None
    return product


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
