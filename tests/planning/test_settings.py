"""The settings that preset, model, device and overrides lead to, and their reasons."""

from dataclasses import replace

import pytest

from localgemma_cli.errors import UsageError
from localgemma_cli.models.adapter_config import Adapter
from localgemma_cli.models.architecture import StoredFormat
from localgemma_cli.models.catalog import facts_from_config, lookup
from localgemma_cli.planning.hardware import Ability
from localgemma_cli.planning.memory import WeightFormat
from localgemma_cli.planning.settings import Overrides, decide_settings

GEMMA_2, GEMMA_1 = lookup("9b"), lookup("7b")


def test_exact_is_native_on_each_device(presets, gpu, turing, server_cpu, old_cpu):
    for machine, dtype in (
        (gpu, "bfloat16"),
        (turing, "float32"),
        (server_cpu, "bfloat16"),
        (old_cpu, "float32"),
    ):
        settings = decide_settings(GEMMA_2, presets["exact"], machine, Overrides())
        assert (settings.weights, settings.attention) == (WeightFormat(dtype), "eager")
        assert modes(settings) == (("graph", "static") if machine.device == "cuda" else ("none", "full"))
        assert any(machine.bf16.why in reason for reason in settings.reasons)


def test_sdpa_is_chosen_only_for_models_without_a_cap_on_scores(presets, gpu):
    assert decide_settings(GEMMA_2, presets["speed"], gpu, Overrides()).attention == "eager"
    assert decide_settings(GEMMA_1, presets["speed"], gpu, Overrides()).attention == "sdpa"
    assert decide_settings(GEMMA_1, presets["exact"], gpu, Overrides()).attention == "eager"


def test_the_two_memory_presets_quantize_and_one_keeps_its_scales_small(presets, gpu):
    memory, extreme = (
        decide_settings(GEMMA_2, presets[name], gpu, Overrides()) for name in ("memory", "memory_extreme")
    )
    assert memory.weights == WeightFormat("bfloat16", "nf4", streamed=True, wide=True)
    assert extreme.weights == WeightFormat("bfloat16", "nf4", streamed=True)
    assert (memory.offload, extreme.offload) == ("none", "auto")


def test_memory_on_a_cpu_keeps_its_cache_in_8_bits_where_our_attention_reads_it(presets, server_cpu, gpu):
    def cache(facts, **overrides):
        return decide_settings(facts, presets["memory"], server_cpu, Overrides(**overrides)).cache

    assert {cache(lookup(name)) for name in ("2b", "7b", "9b", "27b", "3-4b", "demo")} == {"int8"}
    assert cache(GEMMA_2, assistant="lookup") == "int8"
    assert cache(GEMMA_1, attention="sdpa") == "full"
    assert cache(GEMMA_2, compile=True) == "static"
    assert cache(lookup("4-e4b")) == "full"
    odd = replace(GEMMA_2, architecture=replace(GEMMA_2.architecture, head_dim=40))
    assert cache(odd) == "full"
    anywhere = {device: replace(each, cache="int8") for device, each in presets["memory"].devices.items()}
    mine = replace(presets["memory"], devices=anywhere)
    assert decide_settings(GEMMA_2, mine, gpu, Overrides(compile=False)).cache == "full"


def test_memory_extreme_on_a_cpu_takes_the_smaller_cache(presets, server_cpu, old_cpu):
    def cache(name, machine, **overrides):
        return decide_settings(lookup(name), presets["memory_extreme"], machine, Overrides(**overrides)).cache

    assert {cache(name, server_cpu) for name in ("2b", "7b", "9b", "27b")} == {"int8"}
    assert cache("3-4b", server_cpu) == "sliding"  # windows of 1024 of 8192 tokens
    assert cache("3-4b", server_cpu, context=1024) == "int8"
    assert cache("3-4b", server_cpu, assistant="lookup") == "full"
    assert cache("4-e4b", server_cpu) == "sliding"


def test_int8_has_no_scales_to_nest(presets, gpu):
    settings = decide_settings(GEMMA_2, presets["memory_extreme"], gpu, Overrides(quantization="int8"))
    assert settings.weights == WeightFormat("bfloat16", "int8")


@pytest.mark.parametrize("preset", ["exact", "speed"])
def test_quantization_contradicts_a_preset_that_never_quantizes(presets, gpu, preset):
    with pytest.raises(UsageError, match=f"and --preset {preset} cannot be used together"):
        decide_settings(GEMMA_2, presets[preset], gpu, Overrides(quantization="nf4"))
    assert (
        decide_settings(GEMMA_2, presets[preset], gpu, Overrides(quantization="none")).weights.kind == "none"
    )


def test_a_users_own_preset_may_be_overridden_freely(presets, gpu):
    mine = replace(presets["exact"], name="mine")
    assert decide_settings(GEMMA_2, mine, gpu, Overrides(quantization="nf4")).weights.kind == "nf4"


def test_a_static_cache_is_used_only_with_compiling(presets, gpu, server_cpu):
    speed, exact = presets["speed"], presets["exact"]
    on, off = Overrides(compile=True), Overrides(compile=False)
    assert modes(decide_settings(GEMMA_2, speed, gpu, Overrides())) == ("reduce-overhead", "static")
    assert modes(decide_settings(GEMMA_2, speed, gpu, off)) == ("none", "full")
    assert modes(decide_settings(GEMMA_2, exact, gpu, on)) == ("reduce-overhead", "static")
    assert modes(decide_settings(GEMMA_2, exact, server_cpu, on)) == ("default", "static")
    assert modes(decide_settings(GEMMA_2, presets["memory"], gpu, off)) == ("none", "full")


def test_what_cannot_be_recorded_runs_uncompiled_with_a_growing_cache(presets, gpu):
    exact, plain = presets["exact"], ("none", "full")
    settings = replace(exact.devices["cuda"], offload="auto")
    offloading = replace(exact, name="mine", devices={**exact.devices, "cuda": settings})
    mine = replace(exact, name="mine")
    assert modes(decide_settings(GEMMA_2, offloading, gpu, Overrides())) == plain
    assert modes(decide_settings(GEMMA_2, mine, gpu, Overrides(quantization="int8"))) == plain
    assert modes(decide_settings(GEMMA_2, mine, gpu, Overrides(quantization="nf4"))) == ("graph", "static")
    assert modes(decide_settings(GEMMA_2, exact, gpu, Overrides(compile=False))) == plain
    assert modes(decide_settings(GEMMA_2, exact, gpu, Overrides(processes=2))) == plain


def test_flash_attention_has_no_mask_for_the_empty_part_of_a_static_cache(presets, gpu):
    flash = Overrides(attention="flash_attention_2")
    for name in ("exact", "speed"):
        settings = decide_settings(GEMMA_2, presets[name], gpu, flash)
        assert modes(settings) == ("none", "full")
        assert any("flash_attention_2 would read" in reason for reason in settings.reasons)
    with pytest.raises(UsageError, match="empty part"):
        decide_settings(GEMMA_2, presets["speed"], gpu, replace(flash, compile=True))
    off = decide_settings(GEMMA_2, presets["memory_extreme"], gpu, replace(flash, compile=False))
    assert not any("compiled" in reason for reason in off.reasons)


def modes(settings):
    return settings.compile, settings.cache


def test_the_context_is_the_models_or_the_requested_one(presets, gpu):
    assert decide_settings(GEMMA_2, presets["exact"], gpu, Overrides()).context == 8192
    assert decide_settings(GEMMA_2, presets["exact"], gpu, Overrides(context=100)).context == 100
    assert decide_settings(lookup("demo"), presets["exact"], gpu, Overrides()).context == 1024


@pytest.mark.parametrize("context", [8193, 0, -5])
def test_a_context_the_model_cannot_have_is_refused(presets, gpu, context):
    with pytest.raises(UsageError, match="between 1 and 8192 tokens"):
        decide_settings(GEMMA_2, presets["exact"], gpu, Overrides(context=context))


def test_a_very_long_context_is_used_only_on_request(presets, gpu):
    gemma_3 = facts_from_config({"model_type": "gemma3_text"}, name="g3", id="g3")
    settings = decide_settings(gemma_3, presets["exact"], gpu, Overrides())
    assert settings.context == 8192
    assert any("131072" in reason for reason in settings.reasons)
    assert decide_settings(gemma_3, presets["exact"], gpu, Overrides(context=131_072)).context == 131_072


def test_a_quantized_checkpoint_stays_as_it_is_stored(presets, gpu):
    stored = replace(GEMMA_2, stored=StoredFormat("nf4", nested=True))
    for name in ("exact", "memory_extreme"):
        settings = decide_settings(stored, presets[name], gpu, Overrides())
        assert settings.weights == WeightFormat("bfloat16", "nf4", nested=True)
        assert settings.offload == "none"
    settings = decide_settings(stored, presets["memory"], gpu, Overrides(quantization="int8"))
    assert settings.weights.kind == "nf4"
    assert any("(--quantization int8 has no effect)" in reason for reason in settings.reasons)


def test_awq_keeps_its_4_bits_if_there_is_a_kernel_unless_none_is_requested(
    presets, gpu, turing, server_cpu, old_cpu, mac
):
    stored = replace(GEMMA_1, stored=StoredFormat("awq"))
    for machine, dtype, kind in (
        (gpu, "bfloat16", "awq"),
        (server_cpu, "bfloat16", "awq"),
        (old_cpu, "float32", "awq"),
        (turing, "float32", "none"),
        (mac, "bfloat16", "none"),
    ):
        assert decide_settings(stored, presets["memory"], machine, Overrides()).weights == WeightFormat(
            dtype, kind
        )
    assert decide_settings(stored, presets["exact"], gpu, Overrides()).weights == WeightFormat("bfloat16")
    asked = decide_settings(stored, presets["memory"], gpu, Overrides(quantization="none"))
    assert asked.weights == WeightFormat("bfloat16")
    asked = decide_settings(stored, presets["memory"], gpu, Overrides(dtype="fp16", quantization="nf4"))
    assert asked.weights == WeightFormat("float16", "awq")


def test_an_adapter_is_merged_into_unpacked_awq_and_keeps_nf4_with_bitsandbytes(presets, server_cpu):
    adapter = Adapter("a", "b", 8)
    awq = replace(GEMMA_1, stored=StoredFormat("awq"), adapter=adapter)
    assert decide_settings(awq, presets["memory"], server_cpu, Overrides()).weights.kind == "none"
    plain = replace(GEMMA_2, adapter=adapter)
    assert decide_settings(plain, presets["memory"], server_cpu, Overrides()).weights == WeightFormat(
        "bfloat16", "nf4"
    )


@pytest.mark.parametrize(
    ("overrides", "flag"),
    [
        (Overrides(dtype="int4"), "--dtype"),
        (Overrides(quantization="gguf"), "--quantization"),
        (Overrides(attention="flex"), "--attention"),
    ],
)
def test_unknown_values_are_refused_with_their_option(presets, gpu, overrides, flag):
    with pytest.raises(UsageError, match=flag):
        decide_settings(GEMMA_2, presets["memory"], gpu, overrides)


@pytest.mark.parametrize("name", ["memory", "memory_extreme"])
def test_4_bits_are_int4_on_every_cpu(presets, name, desktop_cpu, server_cpu, arm_cpu):
    int4 = WeightFormat("bfloat16", "int4", streamed=True, small_head=name == "memory_extreme")
    for cpu in (desktop_cpu, server_cpu):
        assert decide_settings(GEMMA_2, presets[name], cpu, Overrides()).weights == int4
    assert decide_settings(GEMMA_2, presets[name], arm_cpu, Overrides()).weights.kind == "int4"
    asked = decide_settings(GEMMA_2, presets[name], desktop_cpu, Overrides(quantization="nf4"))
    assert asked.weights == WeightFormat("bfloat16", "nf4", streamed=True)
    adapted = decide_settings(
        replace(GEMMA_2, adapter=Adapter("a", "b", 8)), presets[name], desktop_cpu, Overrides()
    )
    assert (adapted.weights.kind, adapted.weights.streamed) == ("nf4", False)


def test_4_bit_weights_are_streamed_and_the_plan_mentions_the_output_head(presets, server_cpu, gpu, mac):
    for name in ("memory", "memory_extreme"):
        settings = decide_settings(GEMMA_2, presets[name], server_cpu, Overrides())
        assert settings.weights.streamed
        assert any("in 8 bits, where 4 would cost most" in reason for reason in settings.reasons)
        on_gpu = decide_settings(GEMMA_2, presets[name], gpu, Overrides())
        assert on_gpu.weights.streamed
        assert any("output head" in reason for reason in on_gpu.reasons)
        assert not decide_settings(GEMMA_2, presets[name], mac, Overrides()).weights.streamed
    odd = replace(GEMMA_2, architecture=replace(GEMMA_2.architecture, ffn=9000))
    assert not decide_settings(odd, presets["memory"], server_cpu, Overrides()).weights.streamed
    int8 = decide_settings(GEMMA_2, presets["memory"], server_cpu, Overrides(quantization="int8"))
    assert int8.weights == WeightFormat("bfloat16", "int8", streamed=True)
    on_gpu = decide_settings(GEMMA_2, presets["memory"], gpu, Overrides(quantization="int8"))
    assert not on_gpu.weights.streamed


def test_bfloat16_is_widened_on_a_cpu_without_bfloat16_instructions(presets, desktop_cpu, arm_cpu, old_cpu):
    for name in ("exact", "speed", "memory", "memory_extreme"):
        settings = decide_settings(GEMMA_2, presets[name], desktop_cpu, Overrides())
        assert settings.weights.dtype == "bfloat16"
        assert (
            "bfloat16, widened to float32 to multiply because the processor has no bfloat16 instructions"
            in (settings.reasons)
        )
        for cpu in (arm_cpu, old_cpu):
            assert decide_settings(GEMMA_2, presets[name], cpu, Overrides()).weights.dtype == "float32"


def test_speed_packs_bfloat16_into_12_bits_if_there_is_a_kernel(presets, desktop_cpu, server_cpu):
    bare = replace(desktop_cpu, extension=Ability(False, ""))
    settings = decide_settings(GEMMA_1, presets["speed"], desktop_cpu, Overrides())
    assert (settings.weights, settings.attention) == (WeightFormat("bfloat16", compact=True), "eager")
    assert decide_settings(GEMMA_1, presets["speed"], bare, Overrides()).attention == "sdpa"
    assert any("12 bits" in reason for reason in settings.reasons)
    for preset, hardware, overrides in (
        ("exact", desktop_cpu, Overrides()),
        ("memory", desktop_cpu, Overrides()),
        ("speed", desktop_cpu, Overrides(dtype="float32")),
        ("speed", bare, Overrides()),
        ("speed", desktop_cpu, Overrides(compile=True)),
        ("speed", server_cpu, Overrides()),
    ):
        settings = decide_settings(GEMMA_2, presets[preset], hardware, overrides)
        assert not settings.weights.compact
        assert not any("12 bits" in reason for reason in settings.reasons)
