"""Layers that do not fit are offloaded to the host, then to disk, and no more than necessary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localgemma_cli.models.catalog import lookup
from localgemma_cli.planning.memory import (
    MemoryInputs,
    WeightFormat,
    embedding_bytes,
    estimate_memory,
    head_bytes,
    layer_bytes,
)
from localgemma_cli.planning.placement import place_layers

SHAPE = lookup("9b").architecture
WEIGHTS = WeightFormat("bfloat16", "nf4", nested=True)
LOAD = MemoryInputs(SHAPE, WEIGHTS, "eager", "sliding", 8192, "cuda")
OUTSIDE = layer_bytes(SHAPE, WeightFormat("bfloat16"))
GB = 10**9


def test_a_model_that_fits_is_not_offloaded():
    placement = place_layers(LOAD, 24 * GB, 64 * GB, "auto")
    assert (placement.offload, placement.resident_layers) == ("none", None)
    assert placement.memory == estimate_memory(LOAD, 24 * GB, 64 * GB)


def test_nothing_is_offloaded_if_offloading_is_off():
    placement = place_layers(LOAD, 6 * GB, 64 * GB, "none")
    assert (placement.offload, placement.resident_layers, placement.memory.fits) == ("none", None, False)


@given(st.integers(4 * GB, 12 * GB), st.integers(0, 20 * GB))
def test_every_layer_is_placed_and_one_more_would_not_fit(available, host):
    placement = place_layers(LOAD, available, host, "auto")
    memory, kept = placement.memory, placement.resident_layers
    if kept is None:
        assert memory.fits
        return
    moved = SHAPE.layers - kept
    assert memory.host_bytes + memory.disk_bytes == moved * OUTSIDE
    assert memory.host_bytes <= host
    assert memory.disk_bytes == 0 or host - memory.host_bytes < OUTSIDE
    assert memory.fits == (memory.total_bytes <= available)
    if memory.fits and kept < SHAPE.layers - 1:
        assert memory.total_bytes + layer_bytes(SHAPE, WEIGHTS) > available
    assert memory.fits or kept == 0


OURS = WeightFormat("bfloat16", "nf4", streamed=True)
ON_GPU = MemoryInputs(SHAPE, OURS, "eager", "sliding", 4096, "cuda")
LAYER = layer_bytes(SHAPE, OURS)
HEAD = head_bytes(SHAPE, OURS)


@given(st.integers(2_700_000_000, 10 * GB), st.integers(0, 6 * GB))
def test_on_a_gpu_all_streamed_weights_are_placed(available, host):
    whole, placement = estimate_memory(ON_GPU, available, host), place_layers(ON_GPU, available, host, "auto")
    memory, kept = placement.memory, placement.resident_layers
    if kept is None:
        table = 0 if placement.host_embedding else embedding_bytes(SHAPE, OURS)
        assert memory.weights_bytes == whole.weights_bytes + table
        assert memory.fits
        return
    assert placement.host_embedding
    waiting = (SHAPE.layers - kept) * LAYER + (HEAD if placement.head_waits else 0)
    assert memory.host_bytes + memory.disk_bytes == whole.weights_bytes - memory.weights_bytes == waiting
    assert memory.workspace_bytes - whole.workspace_bytes == 2 * LAYER
    assert memory.host_bytes <= host
    assert memory.disk_bytes == 0 or (memory.host_bytes % LAYER == 0 and host - memory.host_bytes < LAYER)
    assert memory.fits
    if kept < SHAPE.layers - 1:
        assert memory.total_bytes + LAYER > available


def test_the_head_leaves_the_gpu_last():
    places = [
        place_layers(ON_GPU, size, 64 * GB, "auto") for size in range(2_700_000_000, 10 * GB, 50_000_000)
    ]
    order = [(each.host_embedding, each.resident_layers is not None, each.head_waits) for each in places]
    assert order == sorted(order, reverse=True)
    assert set(order) == {
        (True, True, True),
        (True, True, False),
        (True, False, False),
        (False, False, False),
    }


def test_streamed_layers_stay_in_their_file_and_two_count_as_workspace():
    weights = WeightFormat("bfloat16", "nf4", streamed=True)
    load = MemoryInputs(SHAPE, weights, "eager", "sliding", 2048, "cpu")
    layer = layer_bytes(SHAPE, weights)
    whole, placement = estimate_memory(load, 3 * GB, 0), place_layers(load, 3 * GB, 0, "disk")
    memory, kept = placement.memory, placement.resident_layers
    moved = SHAPE.layers - kept
    assert (placement.offload, memory.fits, memory.host_bytes) == ("disk", True, 0)
    assert memory.disk_bytes == whole.weights_bytes - memory.weights_bytes == moved * layer
    assert memory.workspace_bytes - whole.workspace_bytes == 2 * layer
    assert memory.total_bytes <= 3 * GB < memory.total_bytes + layer


@pytest.mark.parametrize(
    ("rule", "host", "offload", "fits"),
    [
        ("auto", 64 * GB, "host", True),
        ("auto", 0, "disk", True),
        ("disk", 64 * GB, "disk", True),
        ("host", 0, "host", False),
    ],
)
def test_the_offload_rule_decides_where_layers_go(rule, host, offload, fits):
    placement = place_layers(LOAD, 7 * GB, host, rule)
    assert (placement.offload, placement.memory.fits) == (offload, fits)
    assert (placement.memory.disk_bytes > 0) == (offload == "disk")


def test_offloaded_layers_leave_the_device_and_one_counts_as_workspace():
    whole, placement = estimate_memory(LOAD, 7 * GB, 64 * GB), place_layers(LOAD, 7 * GB, 64 * GB, "auto")
    moved = SHAPE.layers - placement.resident_layers
    assert whole.weights_bytes - placement.memory.weights_bytes == moved * layer_bytes(SHAPE, WEIGHTS)
    assert placement.memory.workspace_bytes - whole.workspace_bytes == OUTSIDE
