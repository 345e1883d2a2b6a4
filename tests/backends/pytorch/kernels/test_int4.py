"""The C extension's int4 product against its definition, by every instruction set that this processor has."""

import copy
from collections.abc import Callable

import pytest
import torch
from support.models import needs_int4
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels import int4 as int4_kernel
from localgemma_cli.backends.pytorch.kernels.int4 import interleave_levels
from localgemma_cli.backends.pytorch.kernels.library import variants
from localgemma_cli.backends.pytorch.layers.int4 import Int4Linear, row_block

pytestmark = [
    needs_int4,
    pytest.mark.skipif(not variants(), reason="needs the C extension for this processor"),
]
SHAPES = [(64, 64, 64), (192, 640, 32), (128, 2304, 64), (64, 9216, 128), (256, 1024, 256), (64, 96, 32)]

Product = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(
    params=[(block, name) for block in (64, 32) for name in variants(block)], ids=lambda case: case[1]
)
def product(request: pytest.FixtureRequest) -> Product:
    block, variant = request.param
    rows = int4_kernel.bind_int4(variant)
    return lambda x, levels, factors: int4_kernel.run_int4(rows, x, interleave_levels(levels, block), factors)


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


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(torch.bfloat16)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_computes_the_definition_and_a_row_is_the_same_bits_among_any_others(
    shape: tuple[int, int, int], product: Product
) -> None:
    levels, factors = weights(*shape)
    x = numbers(200, shape[1])
    expected = definition(x, levels, factors)
    whole = product(x, levels, factors)
    difference = whole.double() - expected
    assert (difference.abs().amax(1) < 0.012 * expected.abs().max()).all()
    assert difference.norm() < 0.008 * expected.norm()
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 64):
        for first in (0, 17, 200 - rows):
            part = product(x[first : first + rows], levels, factors)
            assert torch.equal(part, whole[first : first + rows])


def test_every_instruction_set_gives_the_same_bits(product: Product) -> None:
    levels, factors = weights(192, 640, 64)
    x = numbers(7, 640)
    plainest = int4_kernel.run_int4(int4_kernel.bind_int4("avx2"), x, interleave_levels(levels, 32), factors)
    assert torch.equal(product(x, levels, factors), plainest)


def test_threads_change_no_bit(product: Product) -> None:
    levels, factors = weights(320, 2304, 64)
    x = numbers(7, 2304)
    before = torch.get_num_threads()
    try:
        products = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            products.append(product(x, levels, factors))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, products[0]) for each in products)


def test_extreme_numbers(product: Product) -> None:
    levels, factors = weights(64, 256, 64)
    x = numbers(8, 256)
    x[0] = 0
    x[1] *= 1e30
    x[2] *= 1e-39
    x[3], x[3, 70] = x[3] * 0.01, 1e4
    x[4, 5], x[5, 200], x[6, 255] = float("inf"), float("-inf"), float("nan")
    expected = definition(x, levels, factors)
    got = product(x, levels, factors).double()
    assert (got[0] == 0).all()
    for row in (1, 3, 7):
        assert (got[row] - expected[row]).abs().max() < 0.012 * expected[row].abs().max()
    assert (got[2] - expected[2]).abs().max() < 1e-36
    assert not got[4:7].isfinite().any()


def test_the_largest_numbers_do_not_saturate(product: Product) -> None:
    levels, factors = torch.full((64, 512), 15, dtype=torch.uint8), weights(64, 512, 256)[1]
    x = torch.full((2, 512), 3.0).to(torch.bfloat16)
    x[1] *= -1
    expected = definition(x, levels, factors)
    assert (product(x, levels, factors).double() - expected).abs().max() < 0.005 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_layer_takes_any_type_and_shape_and_can_be_copied(dtype: torch.dtype) -> None:
    levels, factors = weights(64, 256, 64)
    block = row_block()
    assert block is not None
    layer = copy.deepcopy(Int4Linear(interleave_levels(levels, block), factors, 64, 50))
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
    arguments = (numbers(3, 256), interleave_levels(levels, block), factors, block)
    torch.library.opcheck(int4_kernel.int4_rows, arguments)
