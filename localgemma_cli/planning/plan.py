"""Which plan to take: pure functions of facts, preset, hardware and overrides."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from localgemma_cli.errors import DoesNotFitError, UsageError
from localgemma_cli.models.catalog import ModelFacts, catalogue, lookup
from localgemma_cli.planning.advice import AUTOMATIC, advice, candidates, draft_suggestion
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.load_plan import LoadPlan, planned
from localgemma_cli.planning.presets import Preset, preset_named
from localgemma_cli.planning.settings import Overrides
from localgemma_cli.types import listed
from localgemma_cli.units import format_bytes

__all__ = ["LoadPlan", "Overrides", "default_model", "make_plan", "plan_all", "require_fits"]

Presets = Mapping[str, Preset]


def make_plan(
    facts: ModelFacts, preset: str | None, hardware: Hardware, overrides: Overrides, presets: Presets
) -> LoadPlan:
    """The plan of that preset, or of the first automatic one that fits; `fits` may be false.

    The automatic choice is by all memory less a margin: what other programs hold just now does not change it.
    A UsageError where preset and overrides contradict each other, the model or the device.
    """
    resting = hardware.at_rest().capped(overrides.device_memory, overrides.host_memory)
    hardware = hardware.capped(overrides.device_memory, overrides.host_memory)
    if preset is None:
        plan = _automatic(facts, resting, hardware, overrides, presets)
    else:
        plan = planned(facts, preset_named(preset, presets), hardware, overrides)
        plan = _because(plan, f"preset {preset}, as asked: it needs {_figures(plan, hardware)}")
    if plan.memory.fits:
        return replace(plan, reasons=(*plan.reasons, *draft_suggestion(plan, hardware, overrides, presets)))
    hint = advice(plan, hardware, overrides, presets)
    return replace(plan, hint=hint, warnings=(*plan.warnings, f"does not fit: {hint}"))


def _automatic(
    facts: ModelFacts, resting: Hardware, hardware: Hardware, overrides: Overrides, presets: Presets
) -> LoadPlan:
    tried = tuple(candidates(facts, resting, overrides, presets))
    if not tried:  # then the last of them says why best: the others fail for being lossless, too
        return planned(facts, presets[AUTOMATIC[-1]], hardware, overrides)
    for number, plan in enumerate(tried):
        if plan.memory.fits:
            passed = (
                f"{each.preset} would need {_figures(each, resting, 'usable')}" for each in tried[:number]
            )
            fits = f"{plan.preset} fits: it needs {_figures(plan, resting, 'usable')}"
            return _because(_for_now(plan, resting, hardware, overrides, presets), *passed, fits)
    # Where nothing leaves the margin, the smallest may still fit in what is free now.
    smallest = min(candidates(facts, hardware, overrides, presets), key=lambda plan: plan.memory.total_bytes)
    if smallest.memory.fits:
        return _because(smallest, f"{smallest.preset}, the smallest: it needs {_figures(smallest, hardware)}")
    return _because(
        smallest, f"nothing fits; {smallest.preset}, the smallest, needs {_figures(smallest, hardware)}"
    )


def _for_now(
    plan: LoadPlan, resting: Hardware, hardware: Hardware, overrides: Overrides, presets: Presets
) -> LoadPlan:
    """The same preset with the memory that is free now.

    A GPU's is all there is for now. A processor's system makes room, from other programs and their files, so
    that the plan stays as it is and the user hears of it.
    """
    if hardware.device == "cuda":
        caps = tuple(min(a.free, b.free) for a, b in zip(resting.rooms, hardware.rooms, strict=False))
        return planned(plan.model, presets[plan.preset], hardware.capped(caps, None), overrides)
    needed, free = plan.memory.total_bytes, hardware.device_memory_free
    if needed <= free:
        return plan
    short = f"{format_bytes(free)} are free now, and {format_bytes(needed)} are needed: close other programs"
    return replace(plan, warnings=(*plan.warnings, f"{short}, or take a smaller model or --preset"))


def _because(plan: LoadPlan, *reasons: str) -> LoadPlan:
    return replace(plan, reasons=(*reasons, *plan.reasons))


def _figures(plan: LoadPlan, hardware: Hardware, how: str = "free") -> str:
    memory = plan.memory
    elsewhere = [
        f"{format_bytes(size)} {where}"
        for size, where in ((memory.host_bytes, "in the host's memory"), (memory.disk_bytes, "on disk"))
        if size
    ]
    needed = listed([format_bytes(memory.total_bytes), *elsewhere])
    where = f"{len(plan.shares)} GPUs" if plan.shares else hardware.name
    return f"{needed}; {format_bytes(memory.available_bytes)} are {how} on {where}"


def plan_all(hardware: Hardware, overrides: Overrides, presets: Presets) -> tuple[LoadPlan, ...]:
    """Every built-in model with every preset; without those that the overrides make impossible."""
    plans = []
    for facts in catalogue():
        for name in presets:
            with suppress(UsageError):
                plans.append(make_plan(facts, name, hardware, overrides, presets))
    return tuple(plans)


def default_model(hardware: Hardware, overrides: Overrides, presets: Presets) -> ModelFacts:
    """9b where all of it fits on the device, whatever other programs hold just now; else 2b."""
    large, small = (facts for name in ("9b", "2b") if (facts := lookup(name)))
    with suppress(UsageError):
        plan = make_plan(large, None, hardware.at_rest(), overrides, presets)
        if plan.memory.fits and plan.offload == "none":
            return large
    return small


def require_fits(plan: LoadPlan) -> None:
    """A DoesNotFitError, with what would fit, where the plan does not."""
    memory = plan.memory
    if memory.fits:
        return
    needed, free = (
        memory.total_bytes,
        f"{format_bytes(memory.available_bytes)} are free on the {plan.device} device",
    )
    if needed <= memory.available_bytes:
        needed, free = memory.host_bytes, f"{format_bytes(memory.host_available_bytes)} are free on the host"
    raise DoesNotFitError(
        f"{plan.model.name} with preset {plan.preset} needs {format_bytes(needed)}, and {free}.",
        plan.hint or "Take a smaller model.",
    )
