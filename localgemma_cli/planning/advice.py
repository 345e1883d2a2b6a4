"""Suggest what fits instead of a plan that does not: a shorter context, another preset, a smaller model."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from localgemma_cli.errors import UsageError
from localgemma_cli.models.catalog import HUB_MODELS, ModelFacts
from localgemma_cli.planning.draft_model import is_much_smaller
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.load_plan import LoadPlan, plan_automatic_presets, plan_preset
from localgemma_cli.planning.placement import find_longest_context
from localgemma_cli.planning.presets import Preset, Presets
from localgemma_cli.planning.settings import Overrides
from localgemma_cli.units import format_bytes


def suggest_changes(plan: LoadPlan, hardware: Hardware, overrides: Overrides, presets: Presets) -> str:
    """One sentence with every single change that makes the plan fit, or how to get more memory."""
    found = list(_fitting_changes(plan, hardware, overrides, presets))
    if found:
        return f"Use {', or '.join(found)}."
    cap = "--device-memory" if overrides.device_memory else "--host-memory"
    if overrides.device_memory or overrides.host_memory:
        return f"Allow more with {cap}."
    other = "--endpoint" if plan.model.bundled else "--model demo or --endpoint"
    return f"Free some memory, or use {other}."


def suggest_draft(
    plan: LoadPlan, hardware: Hardware, overrides: Overrides, presets: Presets
) -> tuple[str, ...]:
    """A built-in draft model, if both models fit without offloading and --assistant was not given."""
    if plan.draft or overrides.assistant or plan.offload != "none":
        return ()
    for small in HUB_MODELS:
        if not is_much_smaller(small, plan.model):
            continue
        with suppress(UsageError):
            both = plan_preset(plan.model, presets[plan.preset], hardware, replace(overrides, draft=small))
            if both.memory.fits and both.offload == "none":
                total = format_bytes(both.memory.total_bytes)
                return (f"--assistant {small.name} also fits ({total} in all) and may make answers faster",)
    return ()


def _fitting_changes(
    plan: LoadPlan, hardware: Hardware, overrides: Overrides, presets: Presets
) -> Iterator[str]:
    alone = replace(overrides, draft=None)
    if plan.draft and plan_preset(plan.model, presets[plan.preset], hardware, alone).memory.fits:
        yield "no --assistant"
    context = _longest_context(plan, hardware, overrides, presets[plan.preset])
    if context is not None:
        yield f"--context {context}"
    other = next(_fitting_plans(plan.model, hardware, overrides, presets), None)
    if other is not None:
        yield f"--preset {other.preset}"
    smaller = _smaller_model(plan.model, hardware, overrides, presets)
    if smaller is not None:
        yield f"--model {smaller.name}"


def _fitting_plans(
    facts: ModelFacts, hardware: Hardware, overrides: Overrides, presets: Presets
) -> Iterator[LoadPlan]:
    plans = plan_automatic_presets(facts, hardware, overrides, presets)
    return (plan for plan in plans if plan.memory.fits)


def _longest_context(plan: LoadPlan, hardware: Hardware, overrides: Overrides, preset: Preset) -> int | None:
    """The longest shorter context that fits with the same preset."""

    def fits(context: int) -> bool:
        return plan_preset(plan.model, preset, hardware, replace(overrides, context=context)).memory.fits

    return find_longest_context(plan.context_length, fits)


def _smaller_model(
    facts: ModelFacts, hardware: Hardware, overrides: Overrides, presets: Presets
) -> ModelFacts | None:
    """The largest built-in model below this one that fits without offloading."""
    size = facts.architecture.parameters
    smaller = [each for each in HUB_MODELS if each.architecture.parameters < size]
    for each in sorted(smaller, key=lambda model: -model.architecture.parameters):
        if any(plan.offload == "none" for plan in _fitting_plans(each, hardware, overrides, presets)):
            return each
    return None
