"""A draft model beside a larger one: which models can be one, its memory, and when it is suggested."""

from dataclasses import replace

import pytest

from localgemma_cli.errors import UsageError
from localgemma_cli.models.catalog import demo_facts, facts_from_config, lookup
from localgemma_cli.planning.hardware import GIB, describe_hardware
from localgemma_cli.planning.load_plan import plan_preset
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.settings import decide_settings

SMALL, LARGE = lookup("2b"), lookup("27b")
WITH = Overrides(draft=SMALL)


@pytest.fixture
def big_gpu():
    return describe_hardware("cuda", 80 * GIB, 256 * GIB)


@pytest.mark.parametrize("preset", ["exact", "speed", "memory", "memory_extreme"])
def test_the_drafts_weights_and_cache_are_in_the_total(presets, big_gpu, preset):
    alone, small, both = (
        plan_preset(facts, presets[preset], big_gpu, overrides)
        for facts, overrides in ((LARGE, Overrides()), (SMALL, Overrides()), (LARGE, WITH))
    )
    assert both.draft is not None
    assert (both.draft.model, both.draft.dtype, both.draft.quantization) == (
        SMALL,
        "bfloat16",
        small.quantization,
    )
    assert both.memory.weights_bytes == alone.memory.weights_bytes + small.memory.weights_bytes
    larger_caches = {alone.memory.kv_cache_bytes + small.memory.kv_cache_bytes}
    if preset == "memory_extreme":  # both caches keep every token, so that a guess can be rolled back
        full = replace(
            presets[preset], devices={"cuda": replace(presets[preset].devices["cuda"], cache="full")}
        )
        caches = [
            plan_preset(each, full, big_gpu, Overrides()).memory.kv_cache_bytes for each in (LARGE, SMALL)
        ]
        larger_caches = {sum(caches)}
    assert {both.memory.kv_cache_bytes} == larger_caches
    assert both.memory.workspace_bytes == alone.memory.workspace_bytes
    assert both.memory.available_bytes == 80 * GIB
    assert any(reason.startswith("2b drafts tokens") for reason in both.reasons)
    assert (both.to_dict()["assistant"], alone.to_dict()["assistant"]) == ("2b", None)


def test_the_hint_removes_a_draft_that_does_not_fit(presets):
    gpu = describe_hardware("cuda", 58 * GIB, 256 * GIB)
    assert make_plan(LARGE, "exact", gpu, Overrides(), presets).memory.fits
    plan = make_plan(LARGE, "exact", gpu, WITH, presets)
    assert not plan.memory.fits
    assert plan.hint is not None
    assert "no --assistant" in plan.hint


def test_more_layers_are_offloaded_to_fit_the_draft(presets, small_gpu):
    alone, both = (
        plan_preset(LARGE, presets["memory_extreme"], small_gpu, overrides)
        for overrides in (Overrides(), WITH)
    )
    assert both.memory.fits
    assert alone.resident_layers is not None
    assert both.resident_layers is not None
    assert both.resident_layers < alone.resident_layers
    assert both.draft is not None
    assert both.draft.resident_layers is None


def test_a_draft_works_with_a_compiled_step_and_replaces_the_presets_prompt_lookup(
    presets, big_gpu, server_cpu
):
    both = plan_preset(LARGE, presets["speed"], big_gpu, WITH)
    assert both.draft is not None
    assert (both.compile, both.cache) == ("reduce-overhead", "static")
    assert (both.draft.compile, both.draft.cache) == ("reduce-overhead", "static")
    on_cpu = decide_settings(LARGE, presets["speed"], server_cpu, WITH)
    assert (on_cpu.assistant, on_cpu.cache) == ("none", "full")


@pytest.mark.parametrize(
    ("draft", "says"),
    [
        (lookup("7b"), "Gemma 1 and 27b Gemma 2"),
        (demo_facts(), "demo has 2048 tokens and 27b 256000"),
    ],
    ids=["family", "vocabulary"],
)
def test_a_draft_with_other_tokens_is_refused(presets, big_gpu, draft, says):
    with pytest.raises(UsageError, match=says) as caught:
        plan_preset(LARGE, presets["exact"], big_gpu, Overrides(draft=draft))
    assert "--assistant lookup" in caught.value.hint


def test_a_model_in_several_processes_has_no_draft(presets, big_gpu):
    with pytest.raises(UsageError, match="cannot be used with 2 processes"):
        plan_preset(LARGE, presets["exact"], replace(big_gpu, gpu_count=2), replace(WITH, processes=2))


def test_the_family_comes_from_the_config_and_gemma_3_vocabularies_may_be_padded(presets, big_gpu):
    mine = facts_from_config({"model_type": "gemma2", "num_hidden_layers": 2}, name="me/other", id="me/other")
    assert plan_preset(LARGE, presets["exact"], big_gpu, Overrides(draft=mine)).draft is not None
    large = facts_from_config({"model_type": "gemma3_text", "vocab_size": 262_208}, name="g4", id="g4")
    small = facts_from_config(
        {"model_type": "gemma3_text", "vocab_size": 262_144, "num_hidden_layers": 2}, name="g1", id="g1"
    )
    plan = plan_preset(large, presets["exact"], big_gpu, Overrides(draft=small))
    assert plan.to_dict()["assistant"] == "g1"


def test_the_drafts_context_is_the_shorter_of_both(presets, big_gpu):
    short = replace(SMALL, architecture=replace(SMALL.architecture, context_length=2048))
    for draft, asked, context in ((short, None, 2048), (SMALL, 1024, 1024), (SMALL, None, 8192)):
        plan = plan_preset(LARGE, presets["exact"], big_gpu, Overrides(draft=draft, context=asked))
        assert plan.draft is not None
        assert plan.draft.context_length == context


def test_a_draft_as_large_as_the_model_is_warned_of(presets, big_gpu):
    plan = plan_preset(SMALL, presets["exact"], big_gpu, WITH)
    assert any("as large as" in warning for warning in plan.warnings)
    assert not plan_preset(LARGE, presets["exact"], big_gpu, WITH).warnings


def test_a_draft_is_suggested_if_it_is_much_smaller_and_fits_and_no_assistant_is_given(presets, big_gpu, gpu):
    def suggested(name, machine, preset="exact", overrides=None):
        plan = make_plan(lookup(name), preset, machine, overrides or Overrides(), presets)
        return any("--assistant 2b" in reason for reason in plan.reasons)

    assert suggested("27b", big_gpu)
    assert not suggested("9b", big_gpu)  # opt-in: a third of its size
    assert not suggested("27b", describe_hardware("cuda", 58 * GIB, 256 * GIB))
    assert not suggested("27b", big_gpu, overrides=Overrides(assistant="none"))
    assert not suggested("27b", big_gpu, overrides=WITH)
    assert not suggested("2b", gpu)
