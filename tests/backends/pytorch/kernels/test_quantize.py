"""The C extension's quantization to 4 bits against that in PyTorch, by every instruction set here."""

import pytest
import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels.library import Function, variants
from localgemma_cli.backends.pytorch.kernels.quantize import bind_quantizer, find_quantizer, run_quantizer
from localgemma_cli.backends.pytorch.weights.groups import pack_groups, unpack_groups
from localgemma_cli.backends.pytorch.weights.quantize_grouped import Groups, quantize_rows


@pytest.fixture(params=variants())
def quantizer(request: pytest.FixtureRequest) -> Function:
    return bind_quantizer(request.param)


def rows_of(width: int, seed: int = 0) -> Tensor:
    """Rows as models have them, and awkward ones."""
    rows = torch.randn(96, width, generator=torch.Generator().manual_seed(seed))
    rows[0], rows[1] = 0, 3.25
    rows[2] *= 1e-15
    rows[3] *= 1e15
    rows[4, : width // 2], rows[4, width // 2 :] = -2, 5
    rows[5], rows[5, 9] = 0, -1e-7
    rows[6] += 100
    rows[7, :32] *= 1e-3
    return rows


def importance_of(width: int) -> Tensor:
    return torch.rand(width, generator=torch.Generator().manual_seed(1)) ** 4 + 1e-3


def weights(groups: Groups) -> Tensor:
    return unpack_groups(pack_groups(groups.levels, groups.scales, groups.offsets), groups.factors)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("width", [32, 640, 2304])
def test_rows_are_as_in_torch_but_for_ties(quantizer: Function, width: int, known: bool) -> None:
    rows, importance = rows_of(width), importance_of(width) if known else None
    found, expected = run_quantizer(quantizer, rows, importance), quantize_rows(rows, 4, importance)
    for name in ("levels", "scales", "offsets"):
        differences = getattr(found, name) != getattr(expected, name)
        assert differences.float().mean() < 0.002, name
    weigh = 1 if importance is None else importance
    losses = [((weights(each) - rows).double().square() * weigh).sum(1) for each in (found, expected)]
    assert torch.allclose(*losses, rtol=1e-3)


def test_a_number_that_is_none_is_not_hidden(quantizer: Function) -> None:
    rows = rows_of(64)
    rows[8, 3], rows[9, 40] = torch.nan, torch.inf
    stored = weights(run_quantizer(quantizer, rows, None))
    assert stored.isfinite().all(1).tolist() == [row not in (8, 9) for row in range(96)]


@pytest.mark.skipif(not variants(), reason="needs the C extension for this processor")
def test_the_fastest_function_passes_its_own_check() -> None:
    assert find_quantizer() is not None
