"""A choice by probabilities of whole choices: normalized, the likeliest or drawn."""

from collections import Counter
from dataclasses import replace

import pytest

from localgemma_cli.backends.choices import draw_choice, normalize_scores
from localgemma_cli.sampling import Sampling


def test_scores_of_any_size_become_probabilities() -> None:
    assert normalize_scores([-1000.0, -1000.0]) == [0.5, 0.5]
    shares = normalize_scores([-1.0, -2.0, -900.0])
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert shares[0] / shares[1] == pytest.approx(2.718281828)
    assert shares[2] == 0


def test_the_likeliest_is_chosen_at_temperature_0_and_one_is_drawn_above() -> None:
    choices, shares = ("a", "b", "c"), [0.2, 0.5, 0.3]
    assert draw_choice(choices, shares, Sampling(temperature=0)) == "b"

    def drawn(temperature: float) -> Counter[str]:
        sampling = Sampling(temperature=temperature)
        return Counter(draw_choice(choices, shares, replace(sampling, seed=seed)) for seed in range(2000))

    assert {name: count / 2000 for name, count in drawn(1).items()} == pytest.approx(
        dict(zip(choices, shares, strict=True)), abs=0.05
    )
    assert drawn(0.01) == {"b": 2000}
    assert min(drawn(100).values()) > 550
    assert draw_choice(choices, shares, Sampling(temperature=1, seed=7)) == draw_choice(
        choices, shares, Sampling(temperature=1, seed=7)
    )
