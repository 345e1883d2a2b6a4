"""The plan of one preset on one machine."""

import re
from dataclasses import replace

import pytest

from localgemma_cli.errors import UsageError
from localgemma_cli.models.catalog import lookup
from localgemma_cli.planning.hardware import GIB, describe_hardware
from localgemma_cli.planning.load_plan import plan_preset
from localgemma_cli.planning.plan import make_plan
from localgemma_cli.planning.settings import Overrides


def test_json_has_the_documented_shape(presets, gpu):
    plan = plan_preset(lookup("9b"), presets["memory"], gpu, Overrides()).to_dict()
    assert list(plan) == [
        *("model", "preset", "device", "dtype", "quantization", "attention", "cache", "compile", "offload"),
        *("assistant", "context_length", "memory", "reasons", "warnings"),
    ]
    assert plan["model"] == {
        "name": "9b",
        "id": "google/gemma-2-9b-it",
        "parameters": 9_241_705_984,
        "context_length": 8192,
        "stored": None,
        "adapter": None,
    }
    memory = plan["memory"]
    documented = {
        "weights_bytes",
        "kv_cache_bytes",
        "workspace_bytes",
        "total_bytes",
        "available_bytes",
        "fits",
    }
    assert documented <= set(memory)
    parts = memory["weights_bytes"] + memory["kv_cache_bytes"] + memory["workspace_bytes"]
    assert memory["total_bytes"] == parts
    assert (plan["quantization"], plan["dtype"], plan["assistant"]) == ("nf4", "bfloat16", None)


def test_a_presets_summary_is_among_the_reasons(presets, gpu):
    plan = plan_preset(lookup("9b"), presets["memory"], gpu, Overrides())
    assert any("answers that differ" in reason for reason in plan.reasons)


def test_the_host_holds_layers_only_for_a_gpu(presets, small_gpu, server_cpu, mac):
    extreme = presets["memory_extreme"]
    on_gpu = plan_preset(lookup("27b"), extreme, small_gpu, Overrides())
    assert (on_gpu.offload, on_gpu.memory.fits, on_gpu.memory.disk_bytes) == ("host", True, 0)
    on_cpu = plan_preset(lookup("27b"), extreme, server_cpu.capped(12 * GIB, None), Overrides())
    assert (on_cpu.offload, on_cpu.memory.fits, on_cpu.memory.host_bytes) == ("disk", True, 0)
    on_mac = plan_preset(lookup("27b"), extreme, mac, Overrides())
    assert (on_mac.offload, on_mac.memory.fits) == ("none", False)


def test_a_cpu_never_offloads_to_the_host(presets, server_cpu):
    anywhere = replace(presets["memory_extreme"].devices["cpu"], offload="auto")
    mine = replace(presets["memory_extreme"], name="mine", devices={"cpu": anywhere})
    plan = plan_preset(lookup("27b"), mine, server_cpu.capped(12 * GIB, None), Overrides())
    assert (plan.offload, plan.memory.host_bytes) == ("disk", 0)


def test_host_and_disk_are_both_named_when_both_are_used(presets, small_gpu):
    plan = plan_preset(lookup("27b"), presets["memory_extreme"], small_gpu.capped(None, 6 * GIB), Overrides())
    assert plan.offload == "disk"
    assert plan.resident_layers is not None
    moved = 46 - plan.resident_layers
    assert plan.warnings == (
        f"{moved} of 46 layers are copied from the host's memory and disk for every token, which is slow",
    )


@pytest.mark.parametrize(("name", "device"), [("9b", 3), ("27b", 4)])
def test_memory_extreme_fits_in_very_little_memory(presets, name, device):
    machine = describe_hardware("cuda", device * 10**9, 32 * GIB)
    plan = plan_preset(lookup(name), presets["memory_extreme"], machine, Overrides())
    assert plan.memory.fits
    assert plan.memory.disk_bytes == 0
    assert 4096 <= plan.context_length < 8192
    said = "\n".join(plan.reasons)
    assert f"a context of {plan.context_length} tokens" in said
    assert re.search(r"layers \d+ to \d+ and the output head wait in 4 bits, [\d.]+ GB in the host's", said)
    longer = Overrides(context=plan.context_length + 512)
    asked = make_plan(lookup(name), "memory_extreme", machine, longer, presets)
    assert not asked.memory.fits
    assert f"--context {plan.context_length}" in asked.hint


def test_a_cpu_with_little_memory_gets_a_shorter_context_too(presets, server_cpu):
    machine = server_cpu.capped(2_600_000_000, None)
    plan = plan_preset(lookup("9b"), presets["memory_extreme"], machine, Overrides())
    assert (plan.memory.fits, plan.offload) == (True, "disk")
    assert 2048 <= plan.context_length < 8192
    asked = plan_preset(lookup("9b"), presets["memory_extreme"], machine, Overrides(context=8192))
    assert (asked.memory.fits, asked.context_length) == (False, 8192)


def test_other_presets_keep_their_context(presets, gpu):
    plan = plan_preset(lookup("9b"), presets["memory"], gpu.capped(6 * 10**9, None), Overrides())
    assert (plan.memory.fits, plan.context_length) == (False, 8192)


def test_an_embedding_goes_to_the_host_before_any_layer_does(presets, gpu):
    roomy = plan_preset(lookup("9b"), presets["memory"], gpu, Overrides())
    assert (roomy.host_embedding, roomy.wide_scales) == (False, True)
    tight = gpu.capped(roomy.memory.total_bytes - 1, None)
    plan = plan_preset(lookup("9b"), presets["memory"], tight, Overrides())
    assert (plan.memory.fits, plan.host_embedding, plan.resident_layers) == (True, True, None)
    assert roomy.memory.total_bytes - plan.memory.total_bytes == 2 * 256_000 * 3584
    assert any("1.8 GB would not fit" in reason for reason in plan.reasons)


def test_a_step_that_needs_the_host_is_not_captured(presets, gpu):
    cuda = replace(presets["memory"].devices["cuda"], compile="reduce-overhead", cache="static")
    mine = replace(presets["memory"], name="mine", devices={"cuda": cuda})
    roomy = plan_preset(lookup("9b"), mine, gpu, Overrides())
    assert (roomy.compile, roomy.cache) == ("reduce-overhead", "static")
    tight = gpu.capped(roomy.memory.total_bytes - 1, None)
    plan = plan_preset(lookup("9b"), mine, tight, Overrides())
    assert (plan.compile, plan.cache, plan.memory.fits) == ("none", "full", True)
    assert any("cannot be captured" in reason for reason in plan.reasons)
    with pytest.raises(UsageError, match="cannot be compiled"):
        plan_preset(lookup("9b"), mine, tight, Overrides(compile=True))


def test_offloaded_layers_are_not_compiled_but_resident_ones_are(presets, small_gpu, gpu):
    extreme = presets["memory_extreme"]
    with pytest.raises(UsageError, match="cannot be compiled"):
        plan_preset(lookup("27b"), extreme, small_gpu, Overrides(compile=True))
    assert plan_preset(lookup("27b"), extreme, gpu, Overrides(compile=True)).compile == "reduce-overhead"


def test_the_plan_states_that_one_of_several_gpus_is_used(presets, gpu):
    plan = plan_preset(lookup("2b"), presets["exact"], replace(gpu, gpu_count=2), Overrides())
    assert "one of 2 GPUs is used, because it holds the whole model" in plan.reasons
