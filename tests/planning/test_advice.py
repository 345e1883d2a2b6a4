"""Suggestions fit, and are the largest that fit."""

import re

import pytest

from localgemma_cli.models.catalog import lookup
from localgemma_cli.planning.advice import suggest_changes
from localgemma_cli.planning.hardware import GIB
from localgemma_cli.planning.load_plan import plan_preset
from localgemma_cli.planning.settings import Overrides


def advised(name, preset, machine, presets, overrides=None):
    overrides = overrides or Overrides()
    return suggest_changes(
        plan_preset(lookup(name), presets[preset], machine, overrides), machine, overrides, presets
    )


@pytest.mark.parametrize("size", [19, 20, 21])
def test_the_longest_context_that_fits_is_suggested(presets, gpu, size):
    machine = gpu.capped(size * 10**9 + 10**9, None)
    context = int(re.search(r"--context (\d+)", advised("9b", "exact", machine, presets))[1])
    fits, does_not = (
        plan_preset(lookup("9b"), presets["exact"], machine, Overrides(context=tokens)).memory.fits
        for tokens in (context, context + 512)
    )
    assert fits
    assert not does_not


def test_a_slightly_shorter_context_is_found(presets, gpu):
    shorter = plan_preset(lookup("9b"), presets["exact"], gpu, Overrides(context=7680)).memory.total_bytes
    assert "--context 7680" in advised("9b", "exact", gpu.capped(shorter, None), presets)


def test_another_preset_and_a_smaller_model_are_suggested(presets, gpu):
    assert advised("27b", "exact", gpu, presets) == "Use --preset memory, or --model 9b."


def test_a_suggested_smaller_model_fits_without_offloading(presets, small_gpu):
    assert advised("27b", "memory", small_gpu.capped(8 * 10**9, None), presets).endswith("--model 2b.")


def test_the_demo_is_suggested_if_nothing_else_fits(presets, gpu):
    assert "--model demo" in advised("2b", "memory_extreme", gpu.capped(GIB // 2, GIB), presets)


def test_suggestions_keep_the_users_overrides(presets, gpu):
    overrides = Overrides(dtype="float32", context=1024)
    assert "--preset memory" in advised("9b", "exact", gpu, presets, overrides)
    assert "--context" not in advised("9b", "exact", gpu, presets, overrides)


def test_suggestions_never_repeat_the_current_choice(presets, gpu):
    tiny = Overrides(host_memory=1024, device_memory=1024)
    advice = advised("demo", "exact", gpu.capped(1024, 1024), presets, tiny)
    assert advice == "Allow more with --device-memory."
    assert "demo" not in advised("demo", "exact", gpu.capped(1024, 1024), presets)
