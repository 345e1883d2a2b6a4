"""The C extension's product over keys and values in 8 bits against its definition."""

import pytest
import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels import int8 as int8_kernel
from localgemma_cli.backends.pytorch.kernels.library import Function, variants

pytestmark = pytest.mark.skipif(not variants(), reason="needs the C extension for this processor")


@pytest.fixture(params=variants())
def product(request: pytest.FixtureRequest) -> Function:
    return int8_kernel.bind_int8(request.param)


def case(heads: int, rows: int, n: int, k: int, spare: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, levels with `spare` more in each row than are asked for, scales, and the product without them."""
    generator = torch.Generator().manual_seed(heads + rows + n + k)
    x = torch.randn(heads, rows, k, generator=generator)
    levels = torch.randint(-127, 128, (heads, n, k + spare), dtype=torch.int8, generator=generator)
    scales = torch.rand(heads, n + 3, generator=generator).to(torch.bfloat16)[:, :n]
    return x, levels, scales, x.double() @ levels[..., :k].double().mT


@pytest.mark.parametrize(
    "shape", [(4, 2, 1001, 256, 0), (1, 1, 1, 5, 9), (3, 16, 33, 100, 28), (2, 5, 256, 4100, 252)]
)
def test_it_computes_the_definition_and_a_row_is_the_same_bits_among_any_others(
    shape: tuple[int, int, int, int, int], product: Function
) -> None:
    x, levels, scales, expected = case(*shape)
    for factors, wanted in ((None, expected), (scales, expected * scales.double().unsqueeze(1))):
        got = int8_kernel.run_int8(product, x, levels, factors)
        assert (got.double() - wanted).abs().max() < 1e-5 * wanted.abs().max()
        for row in range(shape[1]):
            alone = int8_kernel.run_int8(product, x[:, row : row + 1].contiguous(), levels, factors)
            assert torch.equal(alone[:, 0], got[:, row])


def test_threads_change_no_bit(product: Function) -> None:
    x, levels, scales, _ = case(4, 2, 1001, 256, 0)
    before = torch.get_num_threads()
    try:
        products = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            products.append(int8_kernel.run_int8(product, x, levels, scales))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, products[0]) for each in products)
