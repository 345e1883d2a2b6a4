"""One preset on one machine becomes a plan."""

from dataclasses import replace

import pytest

from localgemma_cli.errors import UsageError
from localgemma_cli.planning.catalog import lookup
from localgemma_cli.planning.hardware import GIB
from localgemma_cli.planning.loadplan import planned
from localgemma_cli.planning.settle import Overrides


def test_json_has_the_documented_shape(presets, gpu):
    plan = planned(lookup("9b"), presets["memory"], gpu, Overrides()).to_dict()
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


def test_a_preset_says_what_it_gives_up(presets, gpu):
    plan = planned(lookup("9b"), presets["memory"], gpu, Overrides())
    assert any("answers that differ" in reason for reason in plan.reasons)


def test_the_host_holds_layers_only_for_a_gpu(presets, small_gpu, server_cpu, mac):
    extreme = presets["memory_extreme"]
    on_gpu = planned(lookup("27b"), extreme, small_gpu, Overrides())
    assert (on_gpu.offload, on_gpu.memory.fits, on_gpu.memory.disk_bytes) == ("host", True, 0)
    on_cpu = planned(lookup("27b"), extreme, server_cpu.capped(16 * GIB, None), Overrides())
    assert (on_cpu.offload, on_cpu.memory.fits, on_cpu.memory.host_bytes) == ("disk", True, 0)
    on_mac = planned(lookup("27b"), extreme, mac, Overrides())
    assert (on_mac.offload, on_mac.memory.fits) == ("none", False)


def test_a_cpu_is_its_own_host_whatever_a_preset_says(presets, server_cpu):
    anywhere = replace(presets["memory_extreme"].devices["cpu"], offload="auto")
    mine = replace(presets["memory_extreme"], name="mine", devices={"cpu": anywhere})
    plan = planned(lookup("27b"), mine, server_cpu.capped(16 * GIB, None), Overrides())
    assert (plan.offload, plan.memory.host_bytes) == ("disk", 0)


def test_host_and_disk_are_both_named_when_both_are_used(presets, small_gpu):
    plan = planned(lookup("27b"), presets["memory_extreme"], small_gpu.capped(None, 16 * GIB), Overrides())
    assert plan.offload == "disk"
    assert plan.resident_layers is not None
    moved = 46 - plan.resident_layers
    assert plan.warnings == (
        f"{moved} of 46 layers are copied from the host's memory and disk for every token, which is slow",
    )


def test_offloaded_layers_are_not_compiled_but_resident_ones_are(presets, small_gpu, gpu):
    extreme = presets["memory_extreme"]
    with pytest.raises(UsageError, match="cannot be compiled"):
        planned(lookup("27b"), extreme, small_gpu, Overrides(compile=True))
    assert planned(lookup("27b"), extreme, gpu, Overrides(compile=True)).compile == "reduce-overhead"


def test_one_of_several_gpus_is_said(presets, gpu):
    plan = planned(lookup("2b"), presets["exact"], replace(gpu, devices=2), Overrides())
    assert "one of 2 GPUs is used" in plan.reasons
