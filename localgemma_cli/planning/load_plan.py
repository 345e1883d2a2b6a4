"""The plan that loaders follow, and how it is made for one preset."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from localgemma_cli.errors import UsageError
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.checks import check_settings, list_warnings
from localgemma_cli.planning.draft_model import (
    add_draft_memory,
    check_draft,
    draft_overrides,
    draft_preset,
    draft_reason,
    draft_warnings,
)
from localgemma_cli.planning.gguf_settings import decide_gguf_settings
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.layer_split import LayerShare
from localgemma_cli.planning.memory import MemoryEstimate
from localgemma_cli.planning.placement import place_model, placement_warnings
from localgemma_cli.planning.prequantized import runs_on_llamacpp
from localgemma_cli.planning.presets import Preset, Presets
from localgemma_cli.planning.settings import Overrides, PlanSettings, decide_settings
from localgemma_cli.planning.tensor_slices import slice_hardware, slice_settings
from localgemma_cli.types import (
    Assistant,
    Attention,
    CacheKind,
    CompileMode,
    DeviceKind,
    Dtype,
    Offload,
    WeightKind,
)

AUTOMATIC = ("exact", "speed", "memory", "memory_extreme")  # in the order in which they are tried


@dataclass(frozen=True)
class LoadPlan:
    """All that a loader needs to know; `resident_layers` None: every layer is on the device.

    `draft`: the plan of the draft model; `memory` includes it.
    `streamed`: quantized weights that this program makes and keeps itself, without bitsandbytes.
    `wide_scales`, `host_embedding`, `head_waits`: for streamed weights on a GPU; see `WeightFormat` and
    `Placement`.
    `shares`: the layers of each GPU, if the model is split over several.
    `compact`: bfloat16 weights packed losslessly into 12 bits each.
    `small_head`: with int4 the head is in int4, too.
    `processes`: how many compute together, each with a slice of every layer; `memory` is that of one of them.
    `rows`: the most answers that are computed at a time; `memory` has the KV cache of each.
    `hint`: what would fit, if this plan does not.
    """

    model: ModelFacts
    preset: str
    device: DeviceKind
    dtype: Dtype
    quantization: WeightKind
    nested_quantization: bool
    streamed: bool
    attention: Attention
    cache: CacheKind
    compile: CompileMode
    offload: Offload
    resident_layers: int | None
    context_length: int
    memory: MemoryEstimate
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    assistant: Assistant = "none"
    draft: "LoadPlan | None" = None
    shares: tuple[LayerShare, ...] = ()
    processes: int = 1
    rows: int = 1
    hint: str | None = None
    wide_scales: bool = False
    host_embedding: bool = False
    head_waits: bool = False
    compact: bool = False
    small_head: bool = False

    @property
    def merges_adapter(self) -> bool:
        """Whether an adapter is added to the weights; quantized weights would have to be rounded again."""
        return self.model.adapter is not None and self.quantization == "none"

    def to_dict(self) -> dict[str, object]:
        """The object that `--json` prints; schemas/plan.schema.json describes it."""
        return {
            "model": {
                "name": self.model.name,
                "id": self.model.id,
                "parameters": self.model.architecture.parameters,
                "context_length": self.model.architecture.context_length,
                "stored": self.model.stored.words if self.model.stored else None,
                "adapter": self.model.adapter.id if self.model.adapter else None,
            },
            "preset": self.preset,
            "device": self.device,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "attention": self.attention,
            "cache": self.cache,
            "compile": self.compile,
            "offload": self.offload,
            "assistant": self._assistant_name(),
            "context_length": self.context_length,
            "memory": self.memory.to_dict(),
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            **({"devices": [share.to_dict() for share in self.shares]} if self.shares else {}),
            **({"processes": self.processes} if self.processes > 1 else {}),
        }

    def _assistant_name(self) -> str | None:
        if self.draft is not None:
            return self.draft.model.name
        return None if self.assistant == "none" else self.assistant


def plan_automatic_presets(
    facts: ModelFacts, hardware: Hardware, overrides: Overrides, presets: Presets
) -> Iterator[LoadPlan]:
    """The plans of the automatic presets, best first; presets that cannot work here are skipped.

    `speed` is tried only if it packs its weights: otherwise it needs as much memory as `exact`. An AWQ
    checkpoint is not unpacked for `exact`, which would restore nothing.
    """
    is_awq = facts.stored is not None and facts.stored.kind == "awq"
    for name in AUTOMATIC[1:] if is_awq else AUTOMATIC:
        with suppress(UsageError):
            plan = plan_preset(facts, presets[name], hardware, overrides)
            if name != "speed" or plan.compact:
                yield plan


def plan_preset(facts: ModelFacts, preset: Preset, hardware: Hardware, overrides: Overrides) -> LoadPlan:
    """The plan of this preset, whether it fits or not; a UsageError if the preset cannot work here."""
    if overrides.draft is None:
        return _plan_model(facts, preset, hardware, overrides)
    check_draft(facts, overrides.draft, preset, overrides.processes)
    context = _decide(facts, preset, hardware, overrides).context
    for_draft = draft_overrides(overrides, overrides.draft, context)
    draft = _plan_model(overrides.draft, draft_preset(preset), hardware, for_draft)
    rest = hardware.device_memory_free - draft.memory.weights_bytes - draft.memory.kv_cache_bytes
    plan = _plan_model(facts, preset, replace(hardware, device_memory_free=max(0, rest)), overrides)
    return replace(
        plan,
        draft=draft,
        memory=add_draft_memory(plan.memory, draft.memory),
        reasons=(*plan.reasons, draft_reason(draft.model, draft.memory)),
        warnings=(*plan.warnings, *draft_warnings(facts, draft.model)),
    )


def _decide(facts: ModelFacts, preset: Preset, hardware: Hardware, overrides: Overrides) -> PlanSettings:
    if facts.stored and runs_on_llamacpp(facts, preset):
        return decide_gguf_settings(facts, facts.stored, preset, hardware.device, overrides)
    return decide_settings(facts, preset, hardware, overrides)


def _plan_model(facts: ModelFacts, preset: Preset, hardware: Hardware, overrides: Overrides) -> LoadPlan:
    """The plan of one model by itself: settings, checks, placement, with the reasons of each."""
    if overrides.processes > 1:
        hardware = slice_hardware(hardware, overrides.processes)
    settings = _decide(facts, preset, hardware, overrides)
    if overrides.processes > 1:
        settings = slice_settings(facts, settings, overrides)
    check_settings(facts, settings, hardware)
    warnings = list_warnings(facts, preset, settings, hardware)
    settings, placement = place_model(facts, settings, hardware, overrides)
    weights = settings.weights
    return LoadPlan(
        model=facts,
        preset=preset.name,
        device=hardware.device,
        dtype=weights.dtype,
        quantization=weights.kind,
        nested_quantization=weights.nested,
        streamed=weights.streamed,
        attention=settings.attention,
        cache=settings.cache,
        compile=settings.compile,
        offload=placement.offload,
        resident_layers=placement.resident_layers,
        wide_scales=weights.wide,
        host_embedding=placement.host_embedding,
        head_waits=placement.head_waits,
        compact=weights.compact,
        small_head=weights.small_head,
        context_length=settings.context,
        assistant=settings.assistant,
        shares=placement.shares,
        processes=overrides.processes,
        memory=placement.memory,
        # the summaries describe what PyTorch does
        reasons=settings.reasons
        if weights.kind == "gguf"
        else (f"{preset.name}: {preset.summary}", *settings.reasons),
        warnings=(*warnings, *placement_warnings(facts, placement, weights)),
    )
