"""Choose the plan for a model: the requested preset, or the best one that fits.

The way of a plan: `make_plan` here → `plan_preset` (load_plan) → `decide_settings` (settings) →
`check_settings` (checks) → `place_model` (placement, with the sums of memory) → a `LoadPlan`.
"""

from contextlib import suppress
from dataclasses import replace

from localgemma_cli.errors import DoesNotFitError, UsageError
from localgemma_cli.models.catalog import ModelFacts, catalogue, lookup
from localgemma_cli.planning.advice import suggest_changes, suggest_draft
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.load_plan import AUTOMATIC, LoadPlan, plan_automatic_presets, plan_preset
from localgemma_cli.planning.presets import Presets, find_preset
from localgemma_cli.planning.settings import Overrides
from localgemma_cli.units import format_bytes

__all__ = ["LoadPlan", "Overrides", "default_model", "make_plan", "plan_all", "require_fits"]


def make_plan(
    facts: ModelFacts, preset: str | None, hardware: Hardware, overrides: Overrides, presets: Presets
) -> LoadPlan:
    """The plan of that preset, or of the first automatic one that fits; `fits` may be false.

    A requested preset is judged by the memory that is free now. The automatic choice is made from all memory
    less a margin, so that it does not change with what other programs use.
    A UsageError if preset and overrides contradict each other, the model or the device.
    """
    now = hardware.capped(overrides.device_memory, overrides.host_memory)
    if preset is None:
        usual = hardware.with_margin().capped(overrides.device_memory, overrides.host_memory)
        plan = _choose_plan(facts, usual, now, overrides, presets)
    else:
        plan = plan_preset(facts, find_preset(preset, presets), now, overrides)
        plan = _add_reasons(plan, f"preset {preset}, as requested: it needs {_needs(plan, now, 'free')}")
    return _add_advice(plan, now, overrides, presets)


def _choose_plan(
    facts: ModelFacts, usual: Hardware, now: Hardware, overrides: Overrides, presets: Presets
) -> LoadPlan:
    """The first automatic preset that fits in the `usual` memory, as it runs in the memory free `now`."""
    tried = tuple(plan_automatic_presets(facts, usual, overrides, presets))
    if not tried:  # the last preset has the most informative error: the others fail for being lossless, too
        return plan_preset(facts, presets[AUTOMATIC[-1]], now, overrides)
    for number, plan in enumerate(tried):
        if plan.memory.fits:
            passed = (
                f"{each.preset} does not fit: it needs {_needs(each, usual, 'usable')}"
                for each in tried[:number]
            )
            fits = f"{plan.preset} fits: it needs {_needs(plan, usual, 'usable')}"
            return _add_reasons(_plan_for_now(plan, usual, now, overrides, presets), *passed, fits)
    smallest = _smallest_plan(facts, now, overrides, presets)
    nothing = "" if smallest.memory.fits else "no preset fits; "
    needs = f"the smallest, {smallest.preset}, needs {_needs(smallest, now, 'free')}"
    return _add_reasons(smallest, nothing + needs)


def _smallest_plan(facts: ModelFacts, now: Hardware, overrides: Overrides, presets: Presets) -> LoadPlan:
    """The automatic preset that needs least; without a margin, only this one may use all that is free now."""
    plans = plan_automatic_presets(facts, now, overrides, presets)
    return min(plans, key=lambda plan: plan.memory.total_bytes)


def _plan_for_now(
    plan: LoadPlan, usual: Hardware, now: Hardware, overrides: Overrides, presets: Presets
) -> LoadPlan:
    """A plan that fits in the `usual` memory, for the memory that is free `now`.

    On a GPU, free memory is a hard limit, so the preset is planned again. A CPU's system can free memory of
    other programs and cached files, so the plan stays, with a warning.
    """
    if now.device == "cuda":
        caps = tuple(min(a.free, b.free) for a, b in zip(usual.gpus, now.gpus, strict=False))
        return plan_preset(plan.model, presets[plan.preset], now.capped(caps, None), overrides)
    needed, free = plan.memory.total_bytes, now.device_memory_free
    if needed <= free:
        return plan
    short = f"{format_bytes(needed)} of memory needed, {format_bytes(free)} are free now"
    warning = f"{short}: close other programs, or use a smaller model or --preset"
    return replace(plan, warnings=(*plan.warnings, warning))


def _add_reasons(plan: LoadPlan, *reasons: str) -> LoadPlan:
    return replace(plan, reasons=(*reasons, *plan.reasons))


def _add_advice(plan: LoadPlan, hardware: Hardware, overrides: Overrides, presets: Presets) -> LoadPlan:
    """The plan with a suggested draft model if it fits, else with a hint at what would fit."""
    if plan.memory.fits:
        return replace(plan, reasons=(*plan.reasons, *suggest_draft(plan, hardware, overrides, presets)))
    hint = suggest_changes(plan, hardware, overrides, presets)
    return replace(plan, hint=hint, warnings=(*plan.warnings, f"does not fit. {hint}"))


def _needs(plan: LoadPlan, hardware: Hardware, how: str) -> str:
    """What the plan needs, and what there is: `20.1 GB; 23.2 GB are usable on NVIDIA L4`."""
    memory = plan.memory
    elsewhere = (
        f"{format_bytes(size)} {where}"
        for size, where in ((memory.host_bytes, "in the host's memory"), (memory.disk_bytes, "on disk"))
        if size
    )
    needed = " plus ".join([format_bytes(memory.total_bytes), *elsewhere])
    where = f"{len(plan.shares)} GPUs" if plan.shares else hardware.name
    return f"{needed}; {format_bytes(memory.available_bytes)} are {how} on {where}"


def plan_all(hardware: Hardware, overrides: Overrides, presets: Presets) -> tuple[LoadPlan, ...]:
    """Every built-in model with every preset, judged as the automatic choice judges them.

    Combinations that cannot work with these overrides are skipped.
    """
    now = hardware.capped(overrides.device_memory, overrides.host_memory)
    usual = hardware.with_margin().capped(overrides.device_memory, overrides.host_memory)
    plans = []
    for facts in catalogue():
        tried = tuple(plan_automatic_presets(facts, usual, overrides, presets))
        has_margin = not tried or any(plan.memory.fits for plan in tried)
        tight = None if has_margin else _smallest_plan(facts, now, overrides, presets).preset
        for preset in presets.values():
            judged, how = (now, "free") if preset.name == tight else (usual, "usable")
            with suppress(UsageError):
                plan = plan_preset(facts, preset, judged, overrides)
                needs = f"preset {preset.name}: it needs {_needs(plan, judged, how)}"
                if plan.memory.fits and judged is usual:
                    plan = _plan_for_now(plan, usual, now, overrides, presets)
                plans.append(_add_advice(_add_reasons(plan, needs), judged, overrides, presets))
    return tuple(plans)


def default_model(hardware: Hardware, overrides: Overrides, presets: Presets) -> ModelFacts:
    """9b if all of it fits on the device, regardless of what other programs use now; else 2b."""
    large, small = (facts for name in ("9b", "2b") if (facts := lookup(name)))
    with suppress(UsageError):
        plan = make_plan(large, None, hardware.with_margin(), overrides, presets)
        if plan.memory.fits and plan.offload == "none":
            return large
    return small


def require_fits(plan: LoadPlan) -> None:
    """Raise DoesNotFitError, with what would fit instead, if the plan does not fit."""
    memory = plan.memory
    if memory.fits:
        return
    needed, free, where = memory.total_bytes, memory.available_bytes, f"on the {plan.device} device"
    if needed <= free:
        needed, free, where = memory.host_bytes, memory.host_available_bytes, "on the host"
    raise DoesNotFitError(
        f"{plan.model.name} with preset {plan.preset} needs {format_bytes(needed)} of memory;"
        f" {format_bytes(free)} are free {where}.",
        plan.hint or "Use a smaller model.",
    )
