"""Combinations that cannot work are refused with the reason; those that work badly give a warning."""

from dataclasses import replace

import pytest

from localgemma_cli.errors import UsageError
from localgemma_cli.models.adapter_config import Adapter
from localgemma_cli.models.catalog import facts_from_config, lookup
from localgemma_cli.planning.checks import check_settings, list_warnings
from localgemma_cli.planning.hardware import Ability
from localgemma_cli.planning.settings import Overrides, decide_settings


def refusal(facts, preset, machine, overrides):
    with pytest.raises(UsageError) as caught:
        check_settings(facts, decide_settings(facts, preset, machine, overrides), machine)
    return caught.value.message


def warned(facts, preset, machine, overrides):
    settings = decide_settings(facts, preset, machine, overrides)
    check_settings(facts, settings, machine)
    return " / ".join(list_warnings(facts, preset, settings, machine))


def test_27b_is_refused_in_float16_under_any_name(presets, gpu):
    assert "overflows in float16" in refusal(lookup("27b"), presets["memory"], gpu, Overrides(dtype="fp16"))
    shape = {"model_type": "gemma2", "hidden_size": 4608, "num_hidden_layers": 46, "intermediate_size": 36864}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128}
    system = facts_from_config(shape | heads, name="lunahr/SystemGemma2", id="lunahr/SystemGemma2")
    assert "overflows" in refusal(system, presets["exact"], gpu, Overrides(dtype="float16"))


def test_float16_gives_a_warning_from_gemma_2(presets, gpu):
    overrides = Overrides(dtype="float16")
    assert "overflow" in warned(lookup("9b"), presets["memory"], gpu, overrides)
    assert "overflow" not in warned(lookup("7b"), presets["memory"], gpu, overrides)


def test_weights_without_a_kernel_are_refused_with_the_reason(presets, old_cpu):
    assert "AVX2" in refusal(lookup("2b"), presets["memory"], old_cpu, Overrides(quantization="nf4"))
    assert "AVX2" in refusal(lookup("4-e4b"), presets["memory"], old_cpu, Overrides())
    message = refusal(lookup("4-e4b"), presets["memory"], old_cpu, Overrides(quantization="int8"))
    assert message.startswith("int8 weights are not supported")


def test_int4_needs_a_cpu_and_streamable_layers(presets, desktop_cpu, gpu, mac):
    overrides, memory = Overrides(quantization="int4"), presets["memory"]
    for elsewhere in (gpu, mac):
        assert "int4 weights are not supported" in refusal(lookup("2b"), memory, elsewhere, overrides)
    assert "its layers' shapes" in refusal(lookup("4-e4b"), memory, desktop_cpu, overrides)
    adapted = replace(lookup("2b"), adapter=Adapter("org/a", "org/b", 8))
    assert "an adapter" in refusal(adapted, memory, desktop_cpu, overrides)


def test_int8_needs_integer_tensor_cores(presets, gpu, turing):
    volta = replace(
        turing, int8=Ability(False, "int8 products need compute capability 7.5; this GPU has 7.0")
    )
    overrides = Overrides(quantization="int8")
    assert "7.5" in refusal(lookup("7b"), presets["memory"], volta, overrides)
    assert warned(lookup("7b"), presets["memory"], gpu, overrides) == ""


def test_int8_cannot_be_compiled_but_nf4_can(presets, gpu):
    message = refusal(lookup("2b"), presets["memory"], gpu, Overrides(quantization="int8", compile=True))
    assert "cannot be compiled" in message
    assert warned(lookup("2b"), presets["memory"], gpu, Overrides(compile=True)) == ""


def test_sdpa_is_refused_only_if_it_would_drop_the_cap(presets, gpu):
    overrides = Overrides(attention="sdpa")
    assert "drop the cap" in refusal(lookup("2b"), presets["memory"], gpu, overrides)
    assert warned(lookup("7b"), presets["memory"], gpu, overrides) == ""


def test_flash_attention_needs_a_recent_gpu_and_16_bits(presets, gpu, turing, server_cpu, mac):
    flash = Overrides(attention="flash_attention_2")
    for machine in (server_cpu, mac):
        assert "NVIDIA GPU" in refusal(lookup("2b"), presets["memory"], machine, flash)
    bf16 = replace(flash, dtype="bf16")
    assert "8.0" in refusal(lookup("2b"), presets["memory"], turing, bf16)
    assert "16 bits" in refusal(lookup("2b"), presets["memory"], gpu, replace(flash, dtype="float32"))
    assert warned(lookup("2b"), presets["memory"], gpu, flash) == ""


def test_an_old_macos_has_no_bfloat16(presets, mac):
    old = replace(
        mac, bf16=Ability(False, "Metal in PyTorch and bitsandbytes needs macOS 14; this is macOS 13")
    )
    assert "macOS 13" in refusal(lookup("2b"), presets["exact"], old, Overrides(dtype="bfloat16"))
    assert "slow" not in warned(lookup("2b"), presets["exact"], old, Overrides())


@pytest.mark.parametrize("overrides", [Overrides(attention="sdpa"), Overrides(dtype="float32")])
def test_exact_warns_when_overrides_change_its_tokens(presets, gpu, overrides):
    assert "no longer" in warned(lookup("7b"), presets["exact"], gpu, overrides)
    assert warned(lookup("7b"), presets["exact"], gpu, Overrides()) == ""


@pytest.mark.parametrize("name", ["exact", "speed", "memory", "memory_extreme"])
def test_a_missing_extension_is_one_warning_where_it_would_compute(
    presets, server_cpu, desktop_cpu, arm_cpu, name
):
    missing = Ability(False, "the C extension was not built")
    for machine in (server_cpu, desktop_cpu, arm_cpu):
        extended = replace(machine, extension=Ability(True, ""))
        assert "C extension" not in warned(lookup("2b"), presets[name], extended, Overrides())
        bare = warned(lookup("2b"), presets[name], replace(machine, extension=missing), Overrides())
        computes = machine is desktop_cpu or name.startswith("memory")
        assert bare.count("the C extension was not built; answers are slower") == computes


def test_a_cpu_warns_of_what_it_does_slowly(presets, server_cpu, desktop_cpu, arm_cpu, old_cpu):
    warnings = warned(lookup("4-e4b"), presets["memory"], arm_cpu, Overrides())
    assert "4-bit weights are slower than float32" in warnings
    assert "AVX512-BF16" in warnings
    assert "int4" not in warnings
    assert "C extension" in warned(lookup("2b"), presets["memory"], arm_cpu, Overrides())
    assert warned(lookup("2b"), presets["exact"], arm_cpu, Overrides()) == ""
    for name in ("memory", "memory_extreme"):  # in int4
        assert warned(lookup("2b"), presets[name], desktop_cpu, Overrides()) == ""
    asked = warned(lookup("2b"), presets["memory"], desktop_cpu, Overrides(quantization="nf4"))
    assert "4-bit weights are slower" in asked
    assert "--quantization int4" in asked
    gemma_4 = warned(lookup("4-e4b"), presets["memory"], desktop_cpu, Overrides())
    assert "4-bit weights are slower" in gemma_4
    assert "int4" not in gemma_4
    assert "bfloat16 is slow" in warned(lookup("2b"), presets["exact"], old_cpu, Overrides(dtype="bf16"))
    assert "float16 is slow" in warned(lookup("7b"), presets["memory"], server_cpu, Overrides(dtype="fp16"))
    assert "compiler" in warned(lookup("2b"), presets["exact"], server_cpu, Overrides(compile=True))
    assert warned(lookup("2b"), presets["memory"], server_cpu, Overrides()) == ""


def test_int8_passes_through_float16(presets, gpu):
    assert "float16" in warned(lookup("2b"), presets["memory"], gpu, Overrides(quantization="int8"))


def test_notes_on_the_hardware_become_warnings(presets, server_cpu):
    noted = replace(server_cpu, notes=("a GPU is here, but",))
    assert "a GPU is here, but" in warned(lookup("2b"), presets["exact"], noted, Overrides())
