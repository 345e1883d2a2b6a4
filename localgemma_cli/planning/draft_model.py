"""Plan a draft model beside the main one: which models can be one, its preset, its memory.

A draft model proposes tokens that the larger model checks.
"""

from collections.abc import Mapping
from dataclasses import replace

from localgemma_cli.errors import UsageError
from localgemma_cli.models.architecture import FAMILY_NAMES
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.memory import MemoryEstimate
from localgemma_cli.planning.prequantized import runs_on_llamacpp
from localgemma_cli.planning.presets import Preset
from localgemma_cli.planning.settings import Overrides
from localgemma_cli.types import CacheKind
from localgemma_cli.units import format_bytes

_PADDING = 64  # rows; Gemma 3's larger sizes add this many to the embedding for their image token
_EVERY_TOKEN: Mapping[str, CacheKind] = {"sliding": "full", "least": "int8"}  # caches that keep every token
_SMALL = 8  # a model this many times smaller proposes several tokens while the larger one computes one


def check_draft(facts: ModelFacts, draft: ModelFacts, preset: Preset, processes: int) -> None:
    """A UsageError if the models cannot share token ids; loading compares their tokenizers."""
    if processes > 1:
        raise UsageError(
            f"--assistant {draft.name} cannot be used with {processes} processes.",
            "Remove --assistant, or run localgemma without torchrun.",
        )
    for each in (facts, draft):
        if runs_on_llamacpp(each, preset):
            raise UsageError(
                f"--assistant cannot be used with a GGUF file, and {each.name} is one.",
                "Remove --assistant, or use the model's safetensors repository.",
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
        "Use a smaller model of the same family, or --assistant lookup.",
    )


def draft_preset(preset: Preset) -> Preset:
    """The preset for a draft model: all of it on the device, with a cache that can return to any token."""
    devices = {
        device: replace(settings, offload="none", cache=_EVERY_TOKEN.get(settings.cache, settings.cache))
        for device, settings in preset.devices.items()
    }
    return replace(preset, devices=devices)


def draft_overrides(overrides: Overrides, draft: ModelFacts, context: int) -> Overrides:
    """The user's overrides, as they apply to the draft model; `context` is the larger model's."""
    context = min(context, draft.architecture.context_length)
    return replace(overrides, assistant="none", draft=None, context=context)


def add_draft_memory(main: MemoryEstimate, draft: MemoryEstimate) -> MemoryEstimate:
    """Both models on one device; they compute in turn, so they share the larger workspace."""
    return replace(
        main,
        weights_bytes=main.weights_bytes + draft.weights_bytes,
        kv_cache_bytes=main.kv_cache_bytes + draft.kv_cache_bytes,
        workspace_bytes=max(main.workspace_bytes, draft.workspace_bytes),
        available_bytes=draft.available_bytes,
    )


def draft_reason(draft: ModelFacts, memory: MemoryEstimate) -> str:
    weights, cache = format_bytes(memory.weights_bytes), format_bytes(memory.kv_cache_bytes)
    return (
        f"{draft.name} drafts tokens as long as that saves time, and the model checks each of them;"
        f" the total includes its weights ({weights}) and cache ({cache})"
    )


def draft_warnings(facts: ModelFacts, draft: ModelFacts) -> tuple[str, ...]:
    if draft.architecture.parameters < facts.architecture.parameters:
        return ()
    return (f"{draft.name} will not save time as a draft model, because it is as large as {facts.name}",)


def is_much_smaller(draft: ModelFacts, facts: ModelFacts) -> bool:
    """Whether `draft` is worth suggesting: of the same family, and a fraction of the size."""
    main, small = facts.architecture, draft.architecture
    return small.family == main.family and small.parameters * _SMALL <= main.parameters
