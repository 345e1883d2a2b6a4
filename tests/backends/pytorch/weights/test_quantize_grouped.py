"""4 and 8 bits in groups of 32: how much of the weights they keep, and what counts more."""

import pytest
import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.weights.groups import pack_groups, unpack_groups
from localgemma_cli.backends.pytorch.weights.quantize_grouped import quantize_rows


def kept(weights: Tensor, bits: int, importance: Tensor | None = None) -> Tensor:
    """What the packed numbers of these weights say."""
    groups = quantize_rows(weights, bits, importance)
    packed = pack_groups(groups.levels, groups.scales, groups.offsets)
    return unpack_groups(packed, groups.factors.contiguous())


def error(weights: Tensor, stored: Tensor) -> float:
    return float((weights - stored).norm() / weights.norm())


def normal(rows: int = 64, width: int = 2304) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("bits", "limit"), [(4, 0.0765), (8, 0.0056)])
def test_normal_numbers(bits: int, limit: float) -> None:
    assert error(normal(), kept(normal(), bits)) < limit


def test_columns_that_count_more_lose_less() -> None:
    weights, importance = normal(), torch.ones(2304)
    importance[::8] = 30
    plain, weighed = (kept(weights, 4, each) for each in (None, importance))
    assert error(weights[:, ::8], weighed[:, ::8]) < 0.75 * error(weights[:, ::8], plain[:, ::8])
    loss = [((weights - each).square() * importance).sum() for each in (plain, weighed)]
    assert loss[1] < 0.8 * loss[0]


@pytest.mark.parametrize("bits", [4, 8])
def test_awkward_rows_lose_little(bits: int) -> None:
    weights = normal(32, 64)
    weights[0], weights[1] = 0, 3.25
    weights[2] *= 1e-15
    weights[3] *= 1e15
    weights[4, :40], weights[4, 40:] = -2, 5
    weights[5], weights[5, 9] = 0, -1e-7
    weights[6] += 100  # far from zero
    weights[7, :32] *= 1e-3  # one group far smaller than the other
    stored = kept(weights, bits)
    assert torch.equal(stored[0], weights[0])
    for index, limit in ((1, 0.01), (2, 0.1), (3, 0.1), (4, 0.01), (5, 0.15), (6, 0.02), (7, 0.1)):
        assert error(weights[index], stored[index]) < limit, index
    assert stored.isfinite().all()
