"""The C extension's product of 4- and 8-bit weights against its definition, by every instruction set here."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels import grouped
from localgemma_cli.backends.pytorch.kernels.library import variants
from localgemma_cli.backends.pytorch.weights.groups import pack_groups, unpack_groups

needs_extension = pytest.mark.skipif(not variants(), reason="needs the C extension for this processor")
SHAPES = [(64, 64), (192, 640), (128, 2304), (64, 9216), (32, 96)]
BITS = [4, 8]

Product = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(params=variants())
def product(request: pytest.FixtureRequest) -> Product:
    rows = grouped.bind_variant(request.param)
    return lambda x, packed, factors: grouped.run_grouped(rows, x, packed, factors)


def random_parts(n: int, k: int, bits: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Levels, scales, offsets and factors of every value that the format has."""
    generator = torch.Generator().manual_seed(n + k + bits)
    low, high = (0, 16) if bits == 4 else (-127, 128)
    levels = torch.randint(low, high, (n, k), generator=generator).to(torch.int8)
    scales = torch.randint(0, 256, (n, k // 32), generator=generator).byte()
    offsets = torch.randint(-127, 128, (n, k // 32), generator=generator).to(torch.int8)
    factors = 0.01 + 0.02 * torch.rand(2 if bits == 4 else 1, n, generator=generator)
    return levels, scales, offsets if bits == 4 else None, factors


def weights(n: int, k: int, bits: int) -> tuple[Tensor, Tensor]:
    levels, scales, offsets, factors = random_parts(n, k, bits)
    return pack_groups(levels, scales, offsets), factors


def definition(x: Tensor, packed: Tensor, factors: Tensor) -> Tensor:
    """In float64."""
    return x.double() @ unpack_groups(packed, factors).double().T


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(torch.bfloat16)


@pytest.mark.parametrize("bits", BITS)
def test_unpacking_gives_the_formats_weights(bits: int) -> None:
    levels, scales, offsets, factors = random_parts(64, 96, bits)
    groups = levels.double().view(64, 3, 32) - (7.5 if bits == 4 else 0)
    expected = groups * (scales * factors[0][:, None]).double()[..., None]
    if offsets is not None:
        expected += (offsets * factors[1][:, None]).double()[..., None]
    unpacked = unpack_groups(pack_groups(levels, scales, offsets), factors)
    assert torch.allclose(unpacked.double(), expected.view(64, 96), rtol=1e-5, atol=1e-5)


@needs_extension
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_computes_the_definition_and_a_row_is_the_same_bits_among_any_others(
    shape: tuple[int, int], bits: int, product: Product
) -> None:
    packed, factors = weights(*shape, bits)
    x = numbers(100, shape[1])
    expected = definition(x, packed, factors)
    whole = product(x, packed, factors)
    difference = whole.double() - expected
    assert (difference.abs().amax(1) < 0.012 * expected.abs().max()).all()
    assert difference.norm() < 0.008 * expected.norm()
    for rows in (1, 2, 3, 4, 5, 7, 64):
        for first in (0, 17, 100 - rows):
            part = product(x[first : first + rows], packed, factors)
            assert torch.equal(part, whole[first : first + rows])


@needs_extension
@pytest.mark.parametrize("bits", BITS)
def test_every_instruction_set_gives_the_same_bits(product: Product, bits: int) -> None:
    packed, factors = weights(192, 640, bits)
    x = numbers(7, 640)
    plainest = grouped.run_grouped(grouped.bind_variant("avx2"), x, packed, factors)
    assert torch.equal(product(x, packed, factors), plainest)


@needs_extension
@pytest.mark.parametrize("bits", BITS)
def test_threads_change_no_bit(product: Product, bits: int) -> None:
    packed, factors = weights(320, 2304, bits)
    x = numbers(7, 2304)
    before = torch.get_num_threads()
    try:
        products = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            products.append(product(x, packed, factors))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, products[0]) for each in products)


@needs_extension
@pytest.mark.parametrize("bits", BITS)
def test_extreme_numbers(product: Product, bits: int) -> None:
    packed, factors = weights(64, 256, bits)
    x = numbers(8, 256)
    x[0] = 0
    x[1] *= 1e30
    x[2] *= 1e-39
    x[3], x[3, 70] = x[3] * 0.01, 1e4
    x[4, 5], x[5, 200], x[6, 255] = float("inf"), float("-inf"), float("nan")
    expected = definition(x, packed, factors)
    got = product(x, packed, factors).double()
    assert (got[0] == 0).all()
    for row in (1, 3, 7):
        assert (got[row] - expected[row]).abs().max() < 0.012 * expected[row].abs().max()
    assert (got[2] - expected[2]).abs().max() < 1e-33
    assert not got[4:7].isfinite().any()


@needs_extension
@pytest.mark.parametrize(("bits", "level"), [(4, 15), (8, 127), (8, -127)])
def test_the_largest_numbers_do_not_saturate(product: Product, bits: int, level: int) -> None:
    parts = random_parts(64, 512, bits)
    packed, factors = pack_groups(torch.full_like(parts[0], level), *parts[1:3]), parts[3]
    x = torch.full((2, 512), 3.0).to(torch.bfloat16)
    x[1] *= -1
    expected = definition(x, packed, factors)
    assert (product(x, packed, factors).double() - expected).abs().max() < 0.005 * expected.abs().max()


@needs_extension
@pytest.mark.parametrize("bits", BITS)
def test_torch_compile_sees_a_shape(bits: int) -> None:
    torch.library.opcheck(grouped.grouped_rows, (numbers(3, 256), *weights(128, 256, bits)))
