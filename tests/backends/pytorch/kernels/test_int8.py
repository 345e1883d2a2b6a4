"""Our product over keys and values in 8 bits against its definition."""

import ctypes
import shutil
import sys

import pytest
import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels import int8 as int8_kernel
from localgemma_cli.backends.pytorch.kernels.compiled import bound, compiled
from localgemma_cli.backends.pytorch.kernels.int4 import NEEDED, OPTIONS, SOURCE
from localgemma_cli.backends.pytorch.kernels.int8 import ARGUMENTS, Kernel
from localgemma_cli.planning.host import cpu_flags

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="no C compiler"),
    pytest.mark.skipif("fma" not in (cpu_flags() or ()), reason="no processor that there is a kernel for"),
]
BLOCKS = [64, 32] if "avx512bw" in (cpu_flags() or ()) else [32]


@pytest.fixture(params=BLOCKS, ids=["avx512", "avx2"][-len(BLOCKS) :])
def product(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Kernel:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path_factory.getbasetemp()))
    library = compiled(SOURCE, NEEDED[request.param], OPTIONS[request.param])
    assert isinstance(library, ctypes.CDLL)
    return bound(library, ARGUMENTS).int8_rows


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
    shape: tuple[int, int, int, int, int], product: Kernel
) -> None:
    x, levels, scales, expected = case(*shape)
    for factors, wanted in ((None, expected), (scales, expected * scales.double().unsqueeze(1))):
        got = int8_kernel._run(product, x, levels, factors)
        assert (got.double() - wanted).abs().max() < 1e-5 * wanted.abs().max()
        for row in range(shape[1]):
            alone = int8_kernel._run(product, x[:, row : row + 1].contiguous(), levels, factors)
            assert torch.equal(alone[:, 0], got[:, row])


def test_threads_change_no_bit(product: Kernel) -> None:
    x, levels, scales, _ = case(4, 2, 1001, 256, 0)
    before = torch.get_num_threads()
    try:
        products = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            products.append(int8_kernel._run(product, x, levels, scales))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, products[0]) for each in products)
