"""Our own int4 product against its definition, by both instruction sets."""

import copy
import ctypes
import shutil
import sys
from pathlib import Path

import pytest
import torch
from support.models import needs_int4
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels import compiled
from localgemma_cli.backends.pytorch.kernels import int4 as int4_kernel
from localgemma_cli.backends.pytorch.kernels.int4 import interleaved
from localgemma_cli.backends.pytorch.layers.int4 import Int4Linear, row_block
from localgemma_cli.planning.host import cpu_flags

pytestmark = [
    needs_int4,
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="no C compiler"),
    pytest.mark.skipif("fma" not in (cpu_flags() or ()), reason="no processor that there is a kernel for"),
]
BLOCKS = [64, 32] if "avx512bw" in (cpu_flags() or ()) else [32]
SHAPES = [(64, 64, 64), (192, 640, 32), (128, 2304, 64), (64, 9216, 128), (256, 1024, 256), (64, 96, 32)]


@pytest.fixture(autouse=True, scope="module")
def _own_folders(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALGEMMA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(params=BLOCKS, ids=lambda block: f"blocks-of-{block}")
def block(request: pytest.FixtureRequest) -> int:
    assert int4_kernel.kernel(request.param) is not None
    return request.param


def weights(n: int, k: int, group: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + k + group)
    levels = torch.randint(0, 16, (n, k), generator=generator).byte()
    scales = 0.01 + 0.02 * torch.rand(k // group, n, generator=generator)
    offsets = 0.03 * torch.randn(k // group, n, generator=generator)
    return levels, torch.stack([scales, offsets], -1).to(torch.bfloat16)


def definition(x: Tensor, levels: Tensor, factors: Tensor) -> Tensor:
    """In float64."""
    scales, offsets = factors.double().permute(2, 1, 0).unsqueeze(-1)
    groups = levels.double().view(len(levels), len(factors), -1)
    return x.double() @ ((groups - 8) * scales + offsets).view(levels.shape).T


def product(x: Tensor, levels: Tensor, factors: Tensor, block: int) -> Tensor:
    return int4_kernel.rows_times(x, interleaved(levels, block), factors, block)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(torch.bfloat16)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_computes_the_definition_and_a_row_is_the_same_bits_among_any_others(
    shape: tuple[int, int, int], block: int
) -> None:
    levels, factors = weights(*shape)
    x = numbers(200, shape[1])
    expected = definition(x, levels, factors)
    whole = product(x, levels, factors, block)
    difference = whole.double() - expected
    assert (difference.abs().amax(1) < 0.012 * expected.abs().max()).all()
    assert difference.norm() < 0.008 * expected.norm()
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 64):
        for first in (0, 17, 200 - rows):
            part = product(x[first : first + rows], levels, factors, block)
            assert torch.equal(part, whole[first : first + rows])


@pytest.mark.parametrize("flags", [["-mno-avx512vbmi"], ["-mno-avx512vbmi", "-mno-avx512vnni"]], ids=" ".join)
@pytest.mark.skipif(64 not in BLOCKS, reason="no AVX-512")
def test_without_an_extension_of_avx512_it_is_the_same_bits(flags: list[str], tmp_path: Path) -> None:
    library = tmp_path / "int4.so"
    compiled._compile(
        ("cc", *compiled._FLAGS, *flags), Path(compiled.__file__).with_name("lowbit.c"), library
    )
    levels, factors = weights(192, 640, 64)
    x = numbers(7, 640)
    got = int4_kernel.run(
        compiled.bound(ctypes.CDLL(str(library)), int4_kernel.ARGUMENTS).int4_rows,
        x,
        interleaved(levels, 64),
        factors,
    )
    assert torch.equal(got, product(x, levels, factors, 64))


def test_both_instruction_sets_say_the_same(block: int) -> None:
    levels, factors = weights(192, 640, 64)
    x = numbers(7, 640)
    assert torch.equal(product(x, levels, factors, block), product(x, levels, factors, 32))


def test_threads_change_no_bit(block: int) -> None:
    levels, factors = weights(320, 2304, 64)
    x = numbers(7, 2304)
    before = torch.get_num_threads()
    try:
        products = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            products.append(product(x, levels, factors, block))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, products[0]) for each in products)


def test_extreme_numbers(block: int) -> None:
    levels, factors = weights(64, 256, 64)
    x = numbers(8, 256)
    x[0] = 0
    x[1] *= 1e30
    x[2] *= 1e-39
    x[3], x[3, 70] = x[3] * 0.01, 1e4
    x[4, 5], x[5, 200], x[6, 255] = float("inf"), float("-inf"), float("nan")
    expected = definition(x, levels, factors)
    got = product(x, levels, factors, block).double()
    assert (got[0] == 0).all()
    for row in (1, 3, 7):
        assert (got[row] - expected[row]).abs().max() < 0.012 * expected[row].abs().max()
    assert (got[2] - expected[2]).abs().max() < 1e-36
    assert not got[4:7].isfinite().any()


def test_the_largest_numbers_do_not_saturate(block: int) -> None:
    levels, factors = torch.full((64, 512), 15, dtype=torch.uint8), weights(64, 512, 256)[1]
    x = torch.full((2, 512), 3.0).to(torch.bfloat16)
    x[1] *= -1
    expected = definition(x, levels, factors)
    assert (product(x, levels, factors, block).double() - expected).abs().max() < 0.005 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_layer_takes_any_type_and_shape_and_can_be_copied(dtype: torch.dtype) -> None:
    levels, factors = weights(64, 256, 64)
    block = row_block()
    assert block is not None
    layer = copy.deepcopy(Int4Linear(interleaved(levels, block), factors, 64, 50))
    x = numbers(256, 6).to(dtype).T.view(2, 3, 256)
    expected = definition(x, levels, factors)[..., :50]
    got = layer(x)
    assert (got.dtype, got.shape) == (dtype, expected.shape)
    assert (got.double() - expected).abs().max() < 0.012 * expected.abs().max()
    assert torch.equal(got[1, 2], layer(x[1, 2]))
    assert layer(x[:0]).shape == (0, 3, 50)


def test_torch_compile_sees_a_shape() -> None:
    levels, factors = weights(128, 256, 64)
    block = row_block()
    assert block is not None
    arguments = (numbers(3, 256), interleaved(levels, block), factors, block)
    torch.library.opcheck(int4_kernel.int4_rows, arguments)
