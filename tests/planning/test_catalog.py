"""The built-in models' facts, held against the published figures and against transformers itself."""

import pytest

from localgemma_cli.errors import NotFoundError
from localgemma_cli.planning.catalog import HUB_MODELS, catalogue, demo_facts, facts_from_config, lookup

PARAMETERS = {"2b": 2_614_341_888, "7b": 8_537_680_896, "9b": 9_241_705_984, "27b": 27_227_128_320}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name):
    assert lookup(name).architecture.parameters == PARAMETERS[name]


def test_hub_models_are_gated_and_named_by_their_hub_ids():
    assert [facts.id for facts in HUB_MODELS] == [
        "google/gemma-2-2b-it",
        "google/gemma-7b-it",
        "google/gemma-2-9b-it",
        "google/gemma-2-27b-it",
    ]
    assert all(facts.gated and facts.licence == "Gemma" and not facts.bundled for facts in HUB_MODELS)


def test_only_gemma_2_slides_and_caps():
    assert {facts.name for facts in HUB_MODELS if facts.architecture.softcap} == {"2b", "9b", "27b"}
    assert [facts.architecture.sliding_layers for facts in HUB_MODELS] == [13, 0, 21, 23]


def test_a_name_is_looked_up_whole():
    assert lookup("9b").name == "9b"
    assert lookup("google/gemma-2-9b-it") is None
    assert lookup("my-9b") is None


def test_the_demo_is_bundled_small_and_says_what_it_is_not():
    demo = demo_facts()
    assert demo == lookup("demo") == catalogue()[-1]
    assert demo.bundled
    assert not demo.gated
    assert demo.architecture.family == "gemma2"
    assert demo.architecture.parameters <= 2_500_000
    assert demo.architecture.context_length == 1024
    assert "not a general assistant" in demo.summary


def test_facts_of_a_hub_repository_name_its_generation_and_keep_its_id():
    facts = facts_from_config({"model_type": "gemma2"}, name="mine", id="someone/mine")
    assert (facts.name, facts.id, facts.bundled) == ("mine", "someone/mine", False)
    assert facts.summary == "Gemma 2, 2.6 billion weights."
    assert facts.architecture == lookup("2b").architecture


def test_nothing_is_inferred_from_a_name():
    with pytest.raises(NotFoundError):
        facts_from_config({"model_type": "llama"}, name="gemma-2-9b-it", id="google/gemma-2-9b-it")
