"""Sampling values that arithmetic cannot bear are refused with what is allowed, wherever they are given."""

import math
from dataclasses import replace

import pytest

from localgemma_cli.chat.slash.actions import _change_sampling
from localgemma_cli.errors import UsageError
from localgemma_cli.models.own_models import own_models
from localgemma_cli.sampling import Mode, Sampling, sampling_for, validate_sampling

EXTREMES = [
    ("temperature", 1e-40, "0.001"),
    ("temperature", -0.5, "0.001"),
    ("temperature", 1e300, "1000"),
    ("temperature", math.nan, "0.001"),
    ("temperature", math.inf, "1000"),
    ("top_p", 0.0, "0.000001"),
    ("top_p", 1.5, "and 1"),
    ("top_p", math.nan, "and 1"),
    ("top_k", 0, "between 1"),
    ("top_k", 10**30, "10000000"),
    ("min_p", 1.01, "between 0 and 1"),
    ("min_p", -1e-9, "between 0 and 1"),
    ("repetition_penalty", 1e-300, "0.01"),
    ("repetition_penalty", 0.0, "0.01"),
    ("repetition_penalty", math.inf, "100"),
    ("seed", -1, "2**63 - 1"),
    ("seed", 10**4000, "2**63 - 1"),
    ("max_new_tokens", 0, "between 1"),
    ("max_new_tokens", 10**30, "1000000000"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), EXTREMES, ids=lambda each: str(each)[:20])
def test_an_extreme_is_refused_with_what_is_allowed(name: str, value: float, allowed: str) -> None:
    for refused in (
        lambda: sampling_for(Mode.CHAT, **{name: value}),
        lambda: _change_sampling(Sampling(), "/set", name, str(value)),
        lambda: _change_sampling(Sampling(), "/retry", name.replace("_", "-"), str(value)),
    ):
        with pytest.raises(UsageError) as caught:
            refused()
        assert f"{name.replace('_', '-')} must be between" in caught.value.message
        assert allowed in caught.value.message
        assert len(caught.value.message) < 120


@pytest.mark.parametrize(("name", "value", "allowed"), EXTREMES, ids=lambda each: str(each)[:20])
def test_so_it_is_in_models_toml_with_the_file_named(name: str, value: float, allowed: str, tmp_path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(f'[mine]\nrepository = "demo"\nsampling = {{ {name} = {value} }}\n')
    with pytest.raises(UsageError) as caught:
        own_models(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert name in caught.value.message.replace("-", "_")


def test_a_number_of_too_many_digits_is_refused_in_a_chat() -> None:
    for key in ("seed", "top_k"):
        with pytest.raises(UsageError) as caught:
            _change_sampling(Sampling(), "/set", key, "9" * 5_000)
        assert len(caught.value.message) < 120


@pytest.mark.parametrize(
    "edge",
    [
        {"temperature": 0.0},
        {"temperature": 0.001},
        {"temperature": 1000.0},
        {"top_p": 1e-6, "top_k": 10_000_000, "min_p": 1.0},
        {"repetition_penalty": 0.01, "seed": 2**63 - 1},
        {"repetition_penalty": 100.0, "temperature": 0.001, "top_k": 1},
    ],
)
def test_the_ends_of_what_is_allowed_give_an_answer(edge: dict[str, float]) -> None:
    import torch

    from localgemma_cli.backends.pytorch.generation.sampler import Sampler

    sampler = Sampler(validate_sampling(replace(Sampling(seed=1), **edge)), torch.device("cpu"))
    sampler.begin([1, 2, 3])
    logits = torch.linspace(-1e4, 1e4, 2048)[None]  # far beyond what a Gemma's scores are
    assert 0 <= int(sampler(logits)) < 2048
