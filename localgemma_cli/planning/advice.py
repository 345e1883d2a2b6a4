"""What would fit where a plan does not: a shorter context, another preset, a smaller model."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from localgemma_cli.errors import UsageError
from localgemma_cli.models.catalog import HUB_MODELS, ModelFacts
from localgemma_cli.planning.draft_model import is_small_beside
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.load_plan import LoadPlan, planned
from localgemma_cli.planning.placement import longest_context
from localgemma_cli.planning.presets import Preset
from localgemma_cli.planning.settings import Overrides
from localgemma_cli.units import format_bytes

AUTOMATIC = ("exact", "speed", "memory", "memory_extreme")  # tried in this order


def advice(plan: LoadPlan, hardware: Hardware, overrides: Overrides, presets: Mapping[str, Preset]) -> str:
    """One sentence for the user."""
    found = list(_suggestions(plan, hardware, overrides, presets))
    if found:
        return f"Take {', or '.join(found)}."
    cap = "--device-memory" if overrides.device_memory else "--host-memory"
    if overrides.device_memory or overrides.host_memory:
        return f"Allow more with {cap}."
    other = "--endpoint" if plan.model.bundled else "--model demo or --endpoint"
    return f"Free some memory, or take {other}."


def draft_suggestion(
    plan: LoadPlan, hardware: Hardware, overrides: Overrides, presets: Mapping[str, Preset]
) -> tuple[str, ...]:
    """The built-in model that could draft for this one, where both fit whole and nothing was said of it."""
    if plan.draft or overrides.assistant or plan.offload != "none":
        return ()
    for small in HUB_MODELS:
        if not is_small_beside(small, plan.model):
            continue
        with suppress(UsageError):
            both = planned(plan.model, presets[plan.preset], hardware, replace(overrides, draft=small))
            if both.memory.fits and both.offload == "none":
                total = format_bytes(both.memory.total_bytes)
                return (f"--assistant {small.name} could draft tokens for it to check, and fits: {total}",)
    return ()


def candidates(
    facts: ModelFacts, hardware: Hardware, overrides: Overrides, presets: Mapping[str, Preset]
) -> Iterator[LoadPlan]:
    """The automatic presets' plans, best first; without those that cannot work here.

    Where speed is not compact it takes what exact takes, and is no other way.
    """
    kept = facts.stored is not None and facts.stored.kind == "awq"  # 4 bits lose nothing that is still there
    for name in AUTOMATIC[1:] if kept else AUTOMATIC:
        with suppress(UsageError):
            plan = planned(facts, presets[name], hardware, overrides)
            if name != "speed" or plan.compact:
                yield plan


def _suggestions(
    plan: LoadPlan, hardware: Hardware, overrides: Overrides, presets: Mapping[str, Preset]
) -> Iterator[str]:
    alone = replace(overrides, draft=None)
    if plan.draft and planned(plan.model, presets[plan.preset], hardware, alone).memory.fits:
        yield "no --assistant"
    context = _longest_context(plan, hardware, overrides, presets[plan.preset])
    if context is not None:
        yield f"--context {context}"
    other = next(_fitting(plan.model, hardware, overrides, presets), None)
    if other is not None:
        yield f"--preset {other.preset}"
    smaller = _smaller_model(plan.model, hardware, overrides, presets)
    if smaller is not None:
        yield f"--model {smaller.name}"


def _fitting(
    facts: ModelFacts, hardware: Hardware, overrides: Overrides, presets: Mapping[str, Preset]
) -> Iterator[LoadPlan]:
    return (plan for plan in candidates(facts, hardware, overrides, presets) if plan.memory.fits)


def _longest_context(plan: LoadPlan, hardware: Hardware, overrides: Overrides, preset: Preset) -> int | None:
    """The longest shorter context that fits with the same preset."""

    def fits(context: int) -> bool:
        return planned(plan.model, preset, hardware, replace(overrides, context=context)).memory.fits

    return longest_context(plan.context_length, fits)


def _smaller_model(
    facts: ModelFacts, hardware: Hardware, overrides: Overrides, presets: Mapping[str, Preset]
) -> ModelFacts | None:
    """The largest built-in model below this one that fits whole."""
    size = facts.architecture.parameters
    smaller = [each for each in HUB_MODELS if each.architecture.parameters < size]
    for each in sorted(smaller, key=lambda model: -model.architecture.parameters):
        if any(plan.offload == "none" for plan in _fitting(each, hardware, overrides, presets)):
            return each
    return None
