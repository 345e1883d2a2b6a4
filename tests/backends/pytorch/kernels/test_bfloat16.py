"""Products of bfloat16 weights: the definition to float32's rounding, whatever the rows and threads."""

import ctypes
import itertools
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels import bfloat16 as bfloat16_kernel
from localgemma_cli.backends.pytorch.kernels.library import Function, variants

pytestmark = pytest.mark.skipif(not variants(), reason="needs the C extension for this processor")
WIDTHS = (64, 200, 256, 448, 832, 2304)


@pytest.fixture(params=variants())
def functions(request: pytest.FixtureRequest) -> Mapping[str, Function]:
    return bfloat16_kernel.bind_variant(request.param)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(torch.bfloat16)


def is_within_rounding(got: Tensor, x: Tensor, weight: Tensor) -> bool:
    """A float32 sum of k terms errs by k * 2^-24 of their absolute values, rounding it by 2^-8 of it."""
    x, weight = x.double(), weight.double()
    exact, width = x @ weight.mT, x.shape[-1]
    sums = (x.abs() @ weight.abs().mT) * width * 2**-24
    return bool(((got.double() - exact).abs() <= sums + (exact.abs() + sums) * 2**-8 + 2.0**-134).all())


def same_bits(got: Tensor, expected: Tensor) -> bool:
    """Also where something is not a number."""
    return torch.allclose(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", WIDTHS)
def test_products_are_the_definition_and_a_row_is_the_same_bits_among_any_others(
    width: int, functions: Mapping[str, Function]
) -> None:
    x, weight = numbers(1, 131, width), numbers(1, 101, width)
    whole = bfloat16_kernel.run_bfloat16(functions, x, weight)
    assert is_within_rounding(whole, x, weight)
    for rows in (1, 2, 3, 4, 7, 8, 16, 17, 48, 49):
        part = bfloat16_kernel.run_bfloat16(functions, x[:, 5 : 5 + rows].contiguous(), weight)
        assert torch.equal(part, whole[:, 5 : 5 + rows]), rows


def test_threads_change_no_bit(functions: Mapping[str, Function], threads: None) -> None:
    for rows in (1, 60):
        x, weight = numbers(1, rows, 832), numbers(1, 1001, 832)
        several = bfloat16_kernel.run_bfloat16(functions, x, weight)
        torch.set_num_threads(1)
        assert torch.equal(bfloat16_kernel.run_bfloat16(functions, x, weight), several)


@pytest.mark.parametrize("width", [width for width in WIDTHS if width % bfloat16_kernel.GROUP == 0])
def test_compact_weights_give_the_same_bits_in_three_quarters_of_the_bytes(
    width: int, functions: Mapping[str, Function]
) -> None:
    x, weight = numbers(1, 60, width), numbers(999, width)
    compact = bfloat16_kernel.compact_weights(weight, functions)
    assert sum(part.nbytes for part in vars(compact).values()) < 0.8 * weight.nbytes
    for rows in (1, 2, 5, 17, 60):
        expected = bfloat16_kernel.run_bfloat16(functions, x[:, :rows], weight[None])
        assert torch.equal(bfloat16_kernel.run_bfloat16(functions, x[:, :rows], compact), expected), rows


def test_compact_weights_hold_any_number(functions: Mapping[str, Function]) -> None:
    """Zeros, the smallest and the largest, infinities and NaN, alone and in whole groups."""
    weight = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16).view(512, 128).clone()
    weight = torch.cat([weight, weight.view(128, 512).T.reshape(512, 128), torch.zeros(3, 128).bfloat16()])
    weight[-1, 7] = -0.0
    compact = bfloat16_kernel.compact_weights(weight, functions)
    one_each = torch.eye(128, dtype=torch.bfloat16)[None]
    for rows in (one_each[:, :3].contiguous(), one_each):
        got, expected = (
            bfloat16_kernel.run_bfloat16(functions, rows, each) for each in (compact, weight[None])
        )
        assert same_bits(got, expected)
    finite = weight[weight.isfinite().all(1)]
    assert len(finite) > 300
    compact = bfloat16_kernel.compact_weights(finite, functions)
    assert torch.equal(bfloat16_kernel.run_bfloat16(functions, one_each, compact)[0], finite.T)


def test_not_a_number_stays_in_its_row_and_the_smallest_numbers_count(
    functions: Mapping[str, Function],
) -> None:
    x, weight = numbers(1, 20, 320), numbers(1, 100, 320)
    x[0, 0, 7], x[0, 1, 8], x[0, 2] = float("inf"), float("nan"), 0
    x[0, 3] *= 1e-38
    got = bfloat16_kernel.run_bfloat16(functions, x, weight)
    assert not got[0, :2].isfinite().any()
    assert (got[0, 2] == 0).all()
    assert is_within_rounding(got[:, 3:], x[:, 3:], weight)


@pytest.mark.parametrize(
    ("heads", "tokens", "width"), [(4, 9, 256), (1, 770, 256), (3, 1001, 128), (4, 33, 64)]
)
def test_heads_are_multiplied_where_they_lie_in_a_cache(
    heads: int, tokens: int, width: int, functions: Mapping[str, Function]
) -> None:
    """Keys token by token, values column by column, in buffers with more tokens before and after."""
    cache = numbers(heads, tokens + 30, width)
    keys = cache[:, 7 : 7 + tokens]
    values = cache.mT.contiguous().mT[:, 7 : 7 + tokens]
    for rows in (1, 2, 40):
        x, weights = numbers(heads, rows, width), numbers(heads, rows, tokens)
        assert is_within_rounding(bfloat16_kernel.run_bfloat16(functions, x, keys), x, keys)
        assert is_within_rounding(
            bfloat16_kernel.run_bfloat16(functions, weights, values.mT), weights, values.mT
        )


def test_a_product_with_a_wrong_result_fails_its_check(functions: Mapping[str, Function]) -> None:
    """One that computes nothing of whole rows, of an odd width, for one row or for packed weights."""
    assert bfloat16_kernel.passes_self_check(functions)
    for skipped in range(4):
        calls = itertools.count()

        def multiply(*arguments: int, calls: Iterator[int] = calls, skipped: int = skipped) -> None:
            if next(calls) != skipped:
                functions["bfloat16_rows"](*arguments)
            else:  # fresh memory may hold the right result of an earlier call
                _, heads, m, n, *_, out, _ = arguments
                ctypes.memset(out, 0, 2 * heads * m * n)

        assert not bfloat16_kernel.passes_self_check({**functions, "bfloat16_rows": multiply}), skipped


def test_wrongly_packed_weights_fail_the_check(functions: Mapping[str, Function]) -> None:
    def pack(*arguments: int) -> None:
        functions["pack"](*arguments)
        ctypes.memset(arguments[4], 1, 8)

    assert not bfloat16_kernel.passes_self_check({**functions, "pack": pack})
