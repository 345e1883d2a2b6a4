"""Which plan is chosen, and why."""

import re
from dataclasses import replace

import pytest

from localgemma_cli.errors import DoesNotFitError, ExitCode, UsageError
from localgemma_cli.models.catalog import HUB_MODELS, catalogue, lookup
from localgemma_cli.planning.hardware import GIB, Ability, describe_hardware
from localgemma_cli.planning.load_plan import AUTOMATIC
from localgemma_cli.planning.plan import Overrides, default_model, make_plan, plan_all, require_fits


def test_a_24_gib_gpu_holds_all_but_the_27b_unquantized(presets, gpu):
    plans = plan_all(gpu, Overrides(), presets)
    fits = {(plan.model.name, plan.preset) for plan in plans if plan.memory.fits}
    assert {("2b", "exact"), ("7b", "exact"), ("9b", "exact")} <= fits
    assert {preset for name, preset in fits if name == "27b"} == {"memory", "memory_extreme"}
    assert len(plans) == len(catalogue()) * 4


@pytest.mark.parametrize(
    ("name", "size", "preset"),
    [
        ("9b", 24, "exact"),
        ("27b", 24, "memory"),
        ("9b", 12, "memory"),
        ("9b", 8, "memory_extreme"),
        ("2b", 8, "exact"),
    ],
)
def test_automatic_is_the_best_that_fits(presets, name, size, preset):
    plan = make_plan(
        lookup(name), None, describe_hardware("cuda", size * GIB, 64 * GIB), Overrides(), presets
    )
    assert (plan.preset, plan.memory.fits, plan.hint) == (preset, True, None)


def test_the_automatic_choice_gives_the_figures_of_the_presets_it_rejected(presets, gpu):
    plan = make_plan(lookup("27b"), None, gpu, Overrides(), presets)
    exact = make_plan(lookup("27b"), "exact", gpu, Overrides(), presets)
    needed = f"{exact.memory.total_bytes / 1e9:.1f} GB"
    assert plan.reasons[0] == f"exact does not fit: it needs {needed}; 23.2 GB are usable on {gpu.name}"
    assert plan.reasons[1].startswith("memory fits: it needs 2")


def test_if_nothing_fits_the_smallest_is_planned_and_refused_with_a_hint(presets, mac):
    machine = mac.capped(10 * GIB, None)
    plan = make_plan(lookup("27b"), None, machine, Overrides(), presets)
    assert (plan.preset, plan.memory.fits) == ("memory_extreme", False)
    assert plan.hint in plan.warnings[-1]
    with pytest.raises(DoesNotFitError, match="27b with preset memory_extreme needs") as caught:
        require_fits(plan)
    assert caught.value.exit_code == ExitCode.MEMORY
    assert "--model" in caught.value.hint


def test_a_plan_that_fits_is_accepted(presets, gpu):
    require_fits(make_plan(lookup("2b"), None, gpu, Overrides(), presets))


def test_the_error_names_the_host_if_its_memory_is_too_small(presets, small_gpu):
    extreme = presets["memory_extreme"]
    host_only = replace(extreme.devices["cuda"], offload="host")
    mine = replace(extreme, name="mine", devices={**extreme.devices, "cuda": host_only})
    machine = small_gpu.capped(None, 4 * GIB)
    plan = make_plan(lookup("27b"), "mine", machine, Overrides(), {**presets, "mine": mine})
    with pytest.raises(DoesNotFitError, match="free on the host"):
        require_fits(plan)


def test_memory_caps_apply(presets, gpu):
    plan = make_plan(lookup("9b"), None, gpu, Overrides(device_memory=12 * GIB), presets)
    assert (plan.preset, plan.memory.available_bytes) == ("memory", 12 * GIB)


def test_a_requested_quantization_limits_the_presets(presets, gpu):
    plan = make_plan(lookup("2b"), None, gpu, Overrides(quantization="int8"), presets)
    assert (plan.preset, plan.quantization) == ("memory", "int8")
    with pytest.raises(UsageError, match="cannot be compiled"):
        make_plan(lookup("2b"), None, gpu, Overrides(quantization="int8", compile=True), presets)


def test_without_a_4_bit_kernel_automatic_stays_unquantized(presets, old_cpu):
    assert make_plan(lookup("4-e2b"), None, old_cpu, Overrides(), presets).preset == "exact"
    with pytest.raises(UsageError, match="AVX2"):
        make_plan(lookup("4-e2b"), "memory", old_cpu, Overrides(), presets)


def test_if_exact_does_not_fit_speed_is_chosen_if_it_packs_the_weights(presets, desktop_cpu):
    small = replace(desktop_cpu, device_memory_total=27 * GIB, host_memory_total=27 * GIB)
    plans = [
        make_plan(lookup("9b"), None, machine, Overrides(), presets)
        for machine in (small, replace(small, extension=Ability(False, "")))
    ]
    assert [plan.preset for plan in plans] == ["speed", "memory"]
    assert plans[0].reasons[0].startswith("exact does not fit")
    assert not any("speed" in reason for reason in plans[1].reasons)


def test_an_unknown_preset_is_refused(presets, gpu):
    with pytest.raises(UsageError, match="Unknown preset: 'fast'"):
        make_plan(lookup("2b"), "fast", gpu, Overrides(), presets)


def test_all_plans_skip_what_cannot_work(presets, gpu, old_cpu):
    in_half = plan_all(gpu, Overrides(dtype="float16"), presets)
    assert not {plan.model.name for plan in in_half} & {"27b", "system-27b"}
    assert {"2b", "7b", "9b", "demo"} < {plan.model.name for plan in in_half}
    old = [plan for plan in plan_all(old_cpu, Overrides(), presets) if plan.model.stored is None]
    gemma_4 = {plan.preset for plan in old if plan.model.architecture.family == "gemma4_text"}
    assert gemma_4 == {"exact", "speed"}  # bitsandbytes would have to quantize it
    assert {plan.preset for plan in old} > gemma_4


@pytest.mark.parametrize(("size", "name"), [(24, "9b"), (12, "9b"), (6, "2b"), (2, "2b")])
def test_the_default_is_9b_if_all_of_it_fits(presets, size, name):
    assert default_model(describe_hardware("cuda", size * GIB, 64 * GIB), Overrides(), presets).name == name


def busy(machine, free):
    """Other programs hold the rest."""
    host = min(free, machine.host_memory_free) if machine.device != "cuda" else machine.host_memory_free
    return replace(machine, device_memory_free=free, host_memory_free=host)


@pytest.mark.parametrize("machine", ["gpu", "server_cpu", "mac"])
def test_memory_used_by_other_programs_changes_neither_preset_nor_default(presets, request, machine):
    machine = request.getfixturevalue(machine)
    for name in ("2b", "9b", "27b"):
        plans = [
            make_plan(lookup(name), None, busy(machine, free), Overrides(), presets)
            for free in (machine.device_memory_total, 12 * GIB, 3 * GIB)
        ]
        assert len({plan.preset for plan in plans}) == 1
        for plan, free in zip(plans, (machine.device_memory_total, 12 * GIB, 3 * GIB), strict=True):
            short = plan.memory.total_bytes > free
            assert (
                any(re.search("free now|does not fit|for every token", each) for each in plan.warnings)
                >= short
            )
    defaults = {default_model(busy(machine, free), Overrides(), presets).name for free in (12 * GIB, GIB)}
    assert defaults == {default_model(machine, Overrides(), presets).name}


def test_little_free_memory_is_a_warning_on_a_cpu_and_refused_on_a_gpu(presets, server_cpu, gpu):
    on_cpu = make_plan(lookup("9b"), None, busy(server_cpu, 8 * GIB), Overrides(), presets)
    assert (on_cpu.preset, on_cpu.memory.fits) == ("exact", True)
    assert "8.6 GB are free now" in on_cpu.warnings[-1]
    on_gpu = make_plan(lookup("9b"), None, busy(gpu, 8 * GIB), Overrides(), presets)
    assert (on_gpu.preset, on_gpu.memory.fits) == ("exact", False)
    assert "--preset memory" in on_gpu.hint


@pytest.mark.parametrize("size", [24 * 10**9, 24 * GIB])
def test_the_automatic_choice_leaves_a_margin(presets, server_cpu, size):
    cpu = replace(
        server_cpu,
        device_memory_total=size,
        device_memory_free=size,
        host_memory_total=size,
        host_memory_free=size,
    )
    for machine, part in ((cpu, 0.75), (describe_hardware("cuda", size, 64 * GIB), 0.9)):
        for facts in catalogue():
            plan = make_plan(facts, None, machine, Overrides(), presets)
            # a GGUF file cannot be made smaller, so the smallest plan may take all that is free
            is_smallest = facts.is_gguf and plan.preset == "memory" and plan.memory.fits
            assert plan.memory.total_bytes <= part * size or is_smallest
    assert make_plan(lookup("9b"), None, cpu, Overrides(), presets).preset == "memory"


@pytest.mark.parametrize("device", ["cuda", "mps", "cpu"])
@pytest.mark.parametrize(("total", "free"), [(24, 24), (24, 23), (24, 9), (12, 12), (8, 3), (3, 3), (2, 1)])
def test_plan_all_agrees_with_the_automatic_choice(presets, device, total, free):
    size = total * GIB
    machine = describe_hardware(device, size, size if device != "cuda" else 64 * GIB)
    machine = busy(machine, min(free * GIB, machine.device_memory_free))
    table = {(plan.model.name, plan.preset): plan for plan in plan_all(machine, Overrides(), presets)}
    for facts in catalogue():
        plan = make_plan(facts, None, machine, Overrides(), presets)
        same = table[facts.name, plan.preset]
        assert (same.memory.fits, same.offload) == (plan.memory.fits, plan.offload)
        assert same.memory.total_bytes == plan.memory.total_bytes
        better = (table.get((facts.name, name)) for name in AUTOMATIC[: AUTOMATIC.index(plan.preset)])
        rejected = [each for each in better if each and (each.preset != "speed" or each.compact)]
        assert facts.stored or not any(each.memory.fits for each in rejected)


def test_a_requested_cap_has_no_margin(presets, server_cpu):
    needed = make_plan(lookup("2b"), "exact", server_cpu, Overrides(), presets).memory.total_bytes
    capped = Overrides(host_memory=needed)
    assert make_plan(lookup("2b"), None, server_cpu, capped, presets).preset == "exact"


def test_a_longer_context_takes_more_and_quantization_less(presets, gpu):
    for facts in HUB_MODELS:
        short, long, packed = (
            make_plan(facts, preset, gpu, Overrides(context=context), presets).memory.total_bytes
            for preset, context in (("exact", 1024), ("exact", 8192), ("memory", 8192))
        )
        assert packed < long
        assert short < long


def test_speed_computes_the_same_weights_as_exact(presets, gpu, server_cpu):
    for machine in (gpu, server_cpu):
        exact, speed = (
            make_plan(lookup("9b"), name, machine, Overrides(), presets) for name in ("exact", "speed")
        )
        assert (speed.dtype, speed.quantization) == (exact.dtype, exact.quantization)
        assert speed.memory.weights_bytes == exact.memory.weights_bytes
