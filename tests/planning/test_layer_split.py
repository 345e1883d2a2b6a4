"""A model that does not fit on one GPU is split over several."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.schemas import validate

from localgemma_cli.errors import UsageError
from localgemma_cli.models.catalog import lookup
from localgemma_cli.planning.hardware import GIB, GpuMemory, describe_hardware
from localgemma_cli.planning.layer_split import split_layers, split_memory
from localgemma_cli.planning.memory import MemoryInputs, WeightFormat, estimate_memory
from localgemma_cli.planning.plan import make_plan
from localgemma_cli.planning.settings import Overrides


def gpus(*sizes):
    return describe_hardware("cuda", tuple(size * GIB for size in sizes), 64 * GIB)


def workload(model):
    return MemoryInputs(lookup(model).architecture, WeightFormat("bfloat16"), "eager", "full", 8192, "cuda")


def layers_of(plan):
    return [layer for share in plan.shares for layer in range(share.first, share.last + 1)]


@pytest.mark.parametrize("preset", ["exact", "speed"])
def test_a_model_too_large_for_one_gpu_is_split_by_whole_layers_and_not_compiled(presets, preset):
    plan = make_plan(lookup("27b"), preset, gpus(40, 24, 24), Overrides(), presets)
    assert plan.memory.fits
    assert layers_of(plan) == list(range(46))
    assert [share.index for share in plan.shares] == [0, 1]  # two are enough
    assert all(share.bytes <= share.available_bytes for share in plan.shares)
    assert (plan.compile, plan.cache, plan.offload) == ("none", "full", "none")
    assert any("split over 2 GPUs" in reason for reason in plan.reasons)


def test_a_model_that_fits_on_one_gpu_is_not_split(presets):
    plan = make_plan(lookup("9b"), "exact", gpus(24, 24), Overrides(), presets)
    assert plan.shares == ()
    assert "devices" not in plan.to_dict()
    assert "one of 2 GPUs is used, because it holds the whole model" in plan.reasons


def test_the_json_lists_the_layers_of_each_gpu(presets):
    plan = make_plan(lookup("27b"), "speed", gpus(24, 24, 24), Overrides(), presets).to_dict()
    validate(plan, "plan")
    devices = plan["devices"]
    assert [device["layers"][0] for device in devices] == [0, *(d["layers"][1] + 1 for d in devices[:-1])]
    assert devices[-1]["layers"][1] == 45
    assert sum(device["bytes"] for device in devices) == pytest.approx(
        plan["memory"]["total_bytes"], rel=1e-6
    )


def test_the_gpu_with_most_free_memory_gets_the_embeddings():
    first, second = split_layers(workload("27b"), gpus(24, 60).gpus)
    assert (first.index, second.index) == (1, 0)
    assert first.bytes > second.bytes


def test_gpus_that_barely_hold_the_model_are_not_overfilled():
    work = workload("27b")
    tried = [
        split_layers(work, [GpuMemory(0, "a", size), GpuMemory(1, "b", size)])
        for size in range(28 * GIB, 34 * GIB, GIB // 16)
    ]
    assert not tried[0]
    assert tried[-1]
    assert all(share.bytes <= share.available_bytes for shares in tried for share in shares)


def test_a_busy_gpu_is_not_used():
    shares = split_layers(
        workload("27b"), [GpuMemory(0, "a", GIB), GpuMemory(1, "b", 40 * GIB), GpuMemory(2, "c", 40 * GIB)]
    )
    assert [share.index for share in shares] == [1, 2]


def test_gpus_with_too_little_memory_together_do_not_fit(presets):
    plan = make_plan(lookup("27b"), "exact", gpus(24, 24), Overrides(), presets)
    assert plan.shares == ()
    assert not plan.memory.fits


def test_several_caps_apply_to_the_gpus_in_turn(presets):
    two = gpus(80, 80, 80).capped((40 * GIB, 30 * GIB), None)
    assert [gpu.free for gpu in two.gpus] == [40 * GIB, 30 * GIB]
    every = gpus(80, 80, 20).capped(30 * GIB, None)
    assert [gpu.free for gpu in every.gpus] == [30 * GIB, 30 * GIB, 20 * GIB]


def test_split_4_bit_weights_are_loaded_by_transformers(presets):
    plan = make_plan(lookup("27b"), "memory", gpus(14, 14, 14), Overrides(), presets)
    assert (plan.quantization, plan.streamed, plan.offload) == ("nf4", False, "none")
    assert len(plan.shares) >= 2
    assert not any("output head is in 4 bits" in reason for reason in plan.reasons)


def test_compiling_over_several_gpus_is_refused(presets):
    with pytest.raises(UsageError, match="does not fit on one GPU"):
        make_plan(lookup("27b"), "exact", gpus(40, 40), Overrides(compile=True), presets)


@given(st.lists(st.integers(1, 80), min_size=2, max_size=8), st.sampled_from(["2b", "9b", "27b"]))
def test_every_layer_is_placed_and_every_gpu_holds_its_share(sizes, model):
    work = workload(model)
    shares = split_layers(work, [GpuMemory(i, "gpu", size * GIB) for i, size in enumerate(sizes)])
    if not shares:
        return
    layers = [layer for share in shares for layer in range(share.first, share.last + 1)]
    assert layers == list(range(work.architecture.layers))
    assert all(share.bytes <= share.available_bytes for share in shares)
    memory, alone = split_memory(work, shares), estimate_memory(work, 0, 0)
    assert memory.fits
    assert memory.weights_bytes == alone.weights_bytes
    assert memory.kv_cache_bytes == pytest.approx(alone.kv_cache_bytes, abs=work.architecture.layers)
    assert memory.workspace_bytes == len(shares) * alone.workspace_bytes


def test_a_gpu_with_fewer_abilities_is_not_used(monkeypatch):
    from localgemma_cli.planning import hardware
    from localgemma_cli.planning.nvml import Gpu

    found = (
        Gpu("GPU-a", "new", 24 * GIB, 20 * GIB, (8, 6)),
        Gpu("GPU-b", "newer still", 24 * GIB, 22 * GIB, (8, 9)),
        Gpu("GPU-c", "old", 16 * GIB, 16 * GIB, (7, 0)),
    )
    monkeypatch.setattr(hardware, "visible_gpus", lambda _: found)
    monkeypatch.setattr(hardware, "torch_has_cuda", lambda: True)
    here = hardware.probe("cuda")
    assert here.gpu_count == 3
    assert here.gpus == (GpuMemory(0, "new", 20 * GIB), GpuMemory(1, "newer still", 22 * GIB, 24 * GIB))
    assert replace(here, device_memory_free=5).gpus[0].free == 5
