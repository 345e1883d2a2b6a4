"""The built-in models' facts, held against the published figures and against transformers itself."""

import pytest

from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.catalog import HUB_MODELS, catalogue, demo_facts, facts_from_config, lookup

PARAMETERS = {
    "2b": 2_614_341_888,
    "7b": 8_537_680_896,
    "9b": 9_241_705_984,
    "27b": 27_227_128_320,
    "3-270m": 268_098_176,
    "3-1b": 999_885_952,
    "3-4b": 3_880_263_168,
}
IDS = {
    "system-2b": "lunahr/SystemGemma2-2b-it",
    "system-9b": "lunahr/SystemGemma2-9b-it",
    "system-27b": "lunahr/SystemGemma2-27b-it",
    "7b-base": "google/gemma-7b",
    "7b-awq": "TechxGenus/gemma-7b-AWQ",
    "codegemma-2-9b-ultra": "EpistemeAI/EpistemeAI-codegemma-2-9b-ultra",
    "3-1b": "google/gemma-3-1b-it",
    "4-31b": "google/gemma-4-31B-it",
}


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


def test_the_other_names_stand_for_their_repositories_and_prompt_forms():
    assert {name: lookup(name).id for name in IDS} == IDS
    forms = {name: lookup(name).form for name in ("7b-base", "7b-awq", "codegemma-2-9b-ultra", "system-9b")}
    assert forms == {
        "7b-base": "raw",
        "7b-awq": "raw",
        "codegemma-2-9b-ultra": "alpaca",
        "system-9b": "gemma",
    }
    assert lookup("7b-awq").stored.kind == "awq"
    assert not lookup("7b-awq").architecture.tied_head
    assert len({facts.name for facts in catalogue()}) == len(catalogue())


def test_gemma_3_and_4_slide_as_their_releases_do():
    shapes = [lookup(name).architecture for name in ("3-1b", "3-4b", "3-12b", "3-27b", "4-e2b", "4-31b")]
    assert [shape.layers - shape.sliding_layers for shape in shapes] == [4, 5, 8, 10, 7, 10]
    assert [shape.sliding_window for shape in shapes] == [512, 1024, 1024, 1024, 512, 1024]
    assert [shape.context_length >> 10 for shape in shapes] == [32, 128, 128, 128, 128, 256]


@pytest.mark.parametrize(("size", "gigabytes"), [("1b", 1.0), ("4b", 3.16), ("12b", 8.07), ("27b", 17.2)])
def test_googles_qat_files_have_their_published_sizes(size: str, gigabytes: float) -> None:
    facts = lookup(f"3-{size}-qat")
    assert (facts.id, facts.gated) == (f"google/gemma-3-{size}-it-qat-q4_0-gguf", True)
    assert facts.architecture == lookup(f"3-{size}").architecture
    assert (facts.is_gguf, facts.stored.words) == (True, "GGUF Q4_0")
    assert facts.stored.bytes / 1e9 == pytest.approx(gigabytes, rel=0.005)


def test_what_cannot_be_planned_is_refused_even_of_gemma_4():
    with pytest.raises(NotFoundError, match="mixture of experts"):
        facts_from_config({"model_type": "gemma4_text", "enable_moe_block": True}, name="moe", id="moe")


def test_nothing_is_inferred_from_a_name():
    with pytest.raises(NotFoundError):
        facts_from_config({"model_type": "llama"}, name="gemma-2-9b-it", id="google/gemma-2-9b-it")
