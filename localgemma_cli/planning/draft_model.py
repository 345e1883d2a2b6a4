"""A small model that drafts tokens for a larger one to check: which may, how it is planned, what it adds."""

from collections.abc import Mapping
from dataclasses import replace

from localgemma_cli.errors import UsageError
from localgemma_cli.models.architecture import FAMILY_NAMES
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.memory import MemoryEstimate
from localgemma_cli.planning.presets import Preset
from localgemma_cli.planning.settings import Overrides
from localgemma_cli.types import CacheKind
from localgemma_cli.units import format_bytes

_PADDING = 64  # rows; Gemma 3's larger sizes append as many to the embedding for their image token
_WHOLE: Mapping[str, CacheKind] = {"sliding": "full", "least": "int8"}  # instead of what forgets
_SMALL = 8  # a model this many times smaller drafts several tokens in the time that the larger takes for one


def refuse_draft(facts: ModelFacts, draft: ModelFacts, processes: int) -> None:
    """A UsageError where the two cannot mean the same by a token id; their tokenizers are compared later."""
    if processes > 1:
        raise UsageError(
            f"{draft.name} drafts in one process, and {facts.name} is spread over {processes}.",
            "Leave --assistant out, or run without torchrun.",
        )
    main, small = facts.architecture, draft.architecture
    if main.family != small.family:
        differ = f"{draft.name} is {FAMILY_NAMES[small.family]} and {facts.name} {FAMILY_NAMES[main.family]}"
    elif abs(main.vocabulary - small.vocabulary) > _PADDING:
        differ = f"{draft.name} has {small.vocabulary} tokens and {facts.name} {main.vocabulary}"
    else:
        return
    raise UsageError(
        f"{draft.name} cannot be the assistant of {facts.name}: {differ}.",
        "Take a smaller model of the same family, or --assistant lookup.",
    )


def whole(preset: Preset) -> Preset:
    """The same with all of the draft on the device, and a cache that can be rolled back to any token."""
    devices = {
        device: replace(settings, offload="none", cache=_WHOLE.get(settings.cache, settings.cache))
        for device, settings in preset.devices.items()
    }
    return replace(preset, devices=devices)


def draft_overrides(overrides: Overrides, draft: ModelFacts, context: int) -> Overrides:
    """What the user said of both; `context` is the larger model's."""
    context = min(context, draft.architecture.context_length)
    return replace(overrides, assistant="none", draft=None, context=context)


def beside(main: MemoryEstimate, draft: MemoryEstimate) -> MemoryEstimate:
    """Both models on one device; they compute in turn, so the larger workspace serves both."""
    return replace(
        main,
        weights_bytes=main.weights_bytes + draft.weights_bytes,
        kv_cache_bytes=main.kv_cache_bytes + draft.kv_cache_bytes,
        workspace_bytes=max(main.workspace_bytes, draft.workspace_bytes),
        available_bytes=draft.available_bytes,
    )


def why_draft(draft: ModelFacts, memory: MemoryEstimate) -> str:
    weights, cache = format_bytes(memory.weights_bytes), format_bytes(memory.kv_cache_bytes)
    return (
        f"{draft.name} drafts tokens while that saves time, and each is checked: the answer stays the model's"
        f" own; its {weights} of weights and {cache} of cache are counted"
    )


def draft_caution(facts: ModelFacts, draft: ModelFacts) -> tuple[str, ...]:
    if draft.architecture.parameters < facts.architecture.parameters:
        return ()
    return (f"{draft.name} is no smaller than {facts.name}, so its drafts will not save time",)


def is_small_beside(draft: ModelFacts, facts: ModelFacts) -> bool:
    """Whether it is worth suggesting: the same family, and a fraction of the size."""
    main, small = facts.architecture, draft.architecture
    return small.family == main.family and small.parameters * _SMALL <= main.parameters
