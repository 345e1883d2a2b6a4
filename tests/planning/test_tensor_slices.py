"""The hardware and the memory of each of several processes."""

import pytest

from localgemma_cli.errors import UsageError
from localgemma_cli.models.catalog import lookup
from localgemma_cli.planning.hardware import GIB, describe_hardware
from localgemma_cli.planning.plan import make_plan
from localgemma_cli.planning.settings import Overrides
from localgemma_cli.planning.tensor_slices import slice_architecture, slice_hardware

TWO = Overrides(processes=2)


def gpus(*sizes):
    return describe_hardware("cuda", tuple(size * GIB for size in sizes), 64 * GIB)


def test_each_process_needs_about_its_part_of_the_model(presets):
    alone = make_plan(lookup("27b"), "exact", gpus(80, 80), Overrides(), presets).memory
    plan = make_plan(lookup("27b"), "exact", gpus(40, 40), TWO, presets)
    assert plan.memory.fits
    assert plan.memory.weights_bytes == pytest.approx(alone.weights_bytes / 2, rel=0.001)
    assert plan.memory.kv_cache_bytes == alone.kv_cache_bytes // 2
    assert plan.to_dict()["processes"] == 2
    assert plan.shares == ()


def test_a_plan_of_one_process_has_no_processes_key(presets, gpu):
    assert "processes" not in make_plan(lookup("2b"), "exact", gpu, Overrides(), presets).to_dict()


def test_a_compiling_preset_is_not_compiled(presets):
    plan = make_plan(lookup("9b"), "speed", gpus(24, 24), TWO, presets)
    assert (plan.compile, plan.cache) == ("none", "full")
    assert any("in 2 processes" in reason for reason in plan.reasons)


def test_without_a_preset_only_the_unquantized_model_is_tried(presets):
    plan = make_plan(lookup("9b"), None, gpus(6, 6), TWO, presets)
    assert (plan.preset, plan.memory.fits) == ("exact", False)


def test_the_smallest_gpu_decides():
    assert slice_hardware(gpus(80, 24), 2).device_memory_free == 24 * GIB


def test_processes_on_a_cpu_share_its_memory(server_cpu):
    part = slice_hardware(server_cpu, 4)
    assert (part.device_memory_free, part.host_memory_free) == (16 * GIB, 16 * GIB)


@pytest.mark.parametrize(
    ("model", "preset", "overrides", "words"),
    [
        ("2b", "memory", TWO, "nf4 weights cannot be split"),
        ("2b", "exact", Overrides(processes=3), "4 key-value heads"),
        ("demo", None, TWO, "3 key-value heads"),
        ("2b", "exact", Overrides(processes=4), "need an NVIDIA GPU each, and 2"),
        ("2b", "exact", Overrides(processes=2, compile=True), "not compiled"),
    ],
)
def test_what_cannot_be_split_is_refused(presets, model, preset, overrides, words):
    hardware = gpus(80, 80, 80) if overrides.processes == 3 else gpus(80, 80)
    with pytest.raises(UsageError, match=words) as caught:
        make_plan(lookup(model), preset, hardware, overrides, presets)
    assert "torchrun" in caught.value.hint


def test_a_slice_is_a_narrower_model():
    half = slice_architecture(lookup("9b").architecture, 2)
    assert (half.heads, half.kv_heads, half.ffn, half.hidden, half.layers) == (8, 4, 7168, 3584, 42)
