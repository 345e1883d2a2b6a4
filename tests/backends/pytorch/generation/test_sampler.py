"""The sampler on a CPU draws from the distribution that transformers' processors leave."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from localgemma_cli.backends.pytorch.generation.sampler import (
    Sampler,
    draw,
    find_largest,
    find_position,
    find_top_p,
)
from localgemma_cli.sampling import Sampling

FILTERS = (
    Sampling(temperature=0.7),
    Sampling(temperature=1.0, top_k=64, top_p=0.95),
    Sampling(temperature=1.0, top_k=3000),
    Sampling(temperature=1.0, top_p=0.5),
    Sampling(temperature=1.0, top_p=0.999),
    Sampling(temperature=40.0, top_p=0.9),
    Sampling(temperature=1.5, min_p=0.08),
    Sampling(temperature=2.0, top_k=500, top_p=0.8, min_p=0.02),
    Sampling(temperature=0.001, top_p=1e-6),
    Sampling(temperature=0.05, min_p=1.0),
)


def some_logits(vocabulary: int) -> Tensor:
    return torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 3


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    processors = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k is not None:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        processors.append(MinPLogitsWarper(sampling.min_p))
    return torch.softmax(processors(None, logits).double(), dim=-1)[0]


@pytest.mark.parametrize("vocabulary", [50, 4000, 40_003])
@pytest.mark.parametrize("sampling", FILTERS, ids=str)
def test_every_part_of_the_distribution_gives_its_token(sampling: Sampling, vocabulary: int) -> None:
    """At positions between 0 and 1: the token where the cumulative sum passes the position, to rounding."""
    logits = some_logits(vocabulary)
    expected = distribution(logits, sampling)
    cumulative = expected.cumsum(0).numpy()
    for position in np.linspace(0, 1, 41)[:-1] + 0.003:
        scores = (logits[0] / sampling.temperature).numpy()
        token = draw(scores, sampling, float(position))
        assert expected[token] > 0
        assert cumulative[token] >= position - 1e-5
        assert cumulative[token] - expected[token] <= position + 1e-5


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
def test_a_sampler_draws_what_its_distribution_allows(sampling: Sampling) -> None:
    logits = some_logits(3000)
    before, allowed = logits.clone(), set(distribution(logits, sampling).nonzero().flatten().tolist())
    sampler = Sampler(sampling, torch.device("cpu"))
    assert {int(sampler(logits)) for _ in range(60)} <= allowed
    assert torch.equal(logits, before)


@pytest.mark.parametrize("count", [1, 2, 64, 700, 2999])
def test_the_largest_are_found_with_all_that_equal_the_least(count: int) -> None:
    scores = some_logits(3000)[0].numpy().round(1)
    least = np.sort(scores)[-count]
    assert set(find_largest(scores, count)) == set(np.flatnonzero(scores >= least))


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 1 - 1e-7])
def test_equal_weights_are_kept_together(top_p: float) -> None:
    assert len(find_top_p(np.ones(5000, np.float32), top_p)) == 5000


def test_positions_at_both_ends_are_tokens_with_a_weight() -> None:
    weights = np.zeros(1000, np.float32)
    weights[[3, 700]] = 1, 2
    assert [find_position(weights, position) for position in (0.0, 0.3, 0.4, 0.999999)] == [3, 3, 700, 700]


def test_logits_that_are_not_numbers_are_an_error() -> None:
    logits = some_logits(3000)
    logits[0, 5] = float("nan")
    with pytest.raises(ValueError, match="not numbers"):
        Sampler(Sampling(temperature=1.0), torch.device("cpu"))(logits)
