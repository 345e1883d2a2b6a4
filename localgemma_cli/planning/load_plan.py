"""The plan itself, and how one preset on one device becomes one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from localgemma_cli.errors import UsageError
from localgemma_cli.models.adapter_config import adapter_bytes
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.checks import cautions, refuse
from localgemma_cli.planning.draft_model import (
    beside,
    draft_caution,
    draft_overrides,
    refuse_draft,
    whole,
    why_draft,
)
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.layer_split import Share, spread, spread_memory, undivided
from localgemma_cli.planning.memory import (
    RUNTIME_BYTES,
    Load,
    MemoryEstimate,
    WeightFormat,
    embedding_bytes,
)
from localgemma_cli.planning.placement import Placement, longest_context, place
from localgemma_cli.planning.presets import Preset
from localgemma_cli.planning.settings import STREAMED, Overrides, Settled, settle
from localgemma_cli.planning.tensor_slices import part_of, slice_of, sliced
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
from localgemma_cli.units import format_bytes


@dataclass(frozen=True)
class LoadPlan:
    """All that a loader needs to know; `resident_layers` None: every layer is on the device.

    `draft`: the small model that guesses for this one to check; `memory` counts it.
    `streamed`: 4-bit weights that this program makes and keeps itself, rather than through bitsandbytes.
    `wide_scales`, `host_embedding` and `head_waits` are of such weights on a GPU, as `WeightFormat` and
    `Placement` have them. `hint` says what would fit where this plan does not.
    `shares`: the layers of each GPU, where one does not hold them all.
    `compact`: bfloat16 weights are kept in 12 bits each, without loss.
    `processes`: how many compute together, each with a slice of every layer; `memory` is that of one of them.
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
    shares: tuple[Share, ...] = ()
    processes: int = 1
    hint: str | None = None
    wide_scales: bool = False
    host_embedding: bool = False
    head_waits: bool = False
    compact: bool = False

    @property
    def merges_adapter(self) -> bool:
        """An adapter becomes part of plain weights; quantized ones would have to be rounded again."""
        return self.model.adapter is not None and self.quantization == "none"

    def to_dict(self) -> dict[str, object]:
        """The `--json` shape; a contract with scripts."""
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


def planned(facts: ModelFacts, preset: Preset, hardware: Hardware, overrides: Overrides) -> LoadPlan:
    """The plan of exactly this preset; a UsageError where it cannot work, fit or not."""
    if overrides.draft is None:
        return _alone(facts, preset, hardware, overrides)
    refuse_draft(facts, overrides.draft, overrides.processes)
    context = settle(facts, preset, hardware, overrides).context
    draft = _alone(
        overrides.draft, whole(preset), hardware, draft_overrides(overrides, overrides.draft, context)
    )
    room = hardware.device_memory_free - draft.memory.weights_bytes - draft.memory.kv_cache_bytes
    plan = _alone(facts, preset, replace(hardware, device_memory_free=max(0, room)), overrides)
    return replace(
        plan,
        draft=draft,
        memory=beside(plan.memory, draft.memory),
        reasons=(*plan.reasons, why_draft(draft.model, draft.memory)),
        warnings=(*plan.warnings, *draft_caution(facts, draft.model)),
    )


def _alone(facts: ModelFacts, preset: Preset, hardware: Hardware, overrides: Overrides) -> LoadPlan:
    hardware = part_of(hardware, overrides.processes)
    settled = sliced(facts, settle(facts, preset, hardware, overrides), overrides)
    refuse(facts, settled, hardware)
    settled, placement = _fitted(facts, settled, hardware, overrides)
    return LoadPlan(
        model=facts,
        preset=preset.name,
        device=hardware.device,
        dtype=settled.weights.dtype,
        quantization=settled.weights.kind,
        nested_quantization=settled.weights.nested,
        streamed=settled.weights.streamed,
        attention=settled.attention,
        cache=settled.cache,
        compile=settled.compile,
        offload=placement.offload,
        resident_layers=placement.resident_layers,
        wide_scales=settled.weights.wide,
        host_embedding=placement.host_embedding,
        head_waits=placement.head_waits,
        compact=settled.weights.compact,
        context_length=settled.context,
        assistant=settled.assistant,
        shares=placement.shares,
        processes=overrides.processes,
        memory=placement.memory,
        reasons=(
            f"{preset.name}: {preset.summary}",
            *settled.reasons,
            *_adapted(facts, settled),
            *_whereabouts(facts, placement, settled.weights),
            *_one_of_several(hardware, placement),
        ),
        warnings=(
            *cautions(facts, preset, settled, hardware),
            *_slow(facts, placement, settled.weights.streamed),
        ),
    )


def _fitted(
    facts: ModelFacts, settled: Settled, hardware: Hardware, overrides: Overrides
) -> tuple[Settled, Placement]:
    """What was settled, less what there is no room for: a captured step, or the default's whole context."""
    if overrides.processes > 1:
        part = replace(facts, architecture=slice_of(facts.architecture, overrides.processes))
        return settled, _placed(part, settled, hardware)
    placement = _placed(facts, settled, hardware)
    if not placement.whole and (several := _across(facts, settled, hardware, overrides)):
        return several
    if settled.compile != "none" and not placement.capturable:
        if overrides.compile or placement.offload != "none":
            raise UsageError(
                f"{facts.name} does not fit whole, and a step that needs the host cannot be compiled.",
                "Take --no-compile, a shorter --context, or a smaller model.",
            )
        cache: CacheKind = "full" if settled.cache == "static" else settled.cache
        why = "not compiled: a step that looks up embeddings on the host cannot be captured"
        settled = replace(settled, compile="none", cache=cache, reasons=(*settled.reasons, why))
    if placement.memory.fits or settled.offload == "none" or overrides.context is not None:
        return settled, placement

    def shorter(context: int) -> Placement:
        return _placed(facts, replace(settled, context=context), hardware)

    context = longest_context(settled.context, lambda length: shorter(length).memory.fits)
    if context is None:
        return settled, placement
    why = f"a context of {context} tokens: the longest whose cache fits"
    return replace(settled, context=context, reasons=(*settled.reasons, why)), shorter(context)


def _across(
    facts: ModelFacts, settled: Settled, hardware: Hardware, overrides: Overrides
) -> tuple[Settled, Placement] | None:
    """Over several GPUs, uncompiled, as a step goes from one to the next; None where that is no way out."""
    load = replace(_load(facts, settled, hardware), weights=undivided(settled.weights))
    shares = spread(load, hardware.rooms) if overrides.draft is None else ()
    if not shares:
        return None
    if overrides.compile:
        raise UsageError(
            f"{facts.name} does not fit on one GPU, and a step over several cannot be compiled.",
            "Take --no-compile, a shorter --context, or a smaller model.",
        )
    uncompiled = "; not compiled, as a step goes from one to the next" if settled.compile != "none" else ""
    why = f"layers are spread over {len(shares)} GPUs: one does not hold them all{uncompiled}"
    reasons = (*(reason for reason in settled.reasons if STREAMED["cuda"] not in reason), why)
    cache: CacheKind = "full" if settled.cache == "static" else settled.cache
    settled = replace(settled, weights=load.weights, compile="none", cache=cache, reasons=reasons)
    return settled, Placement(spread_memory(load, shares), shares=shares)


def _load(facts: ModelFacts, settled: Settled, hardware: Hardware) -> Load:
    shape, adapter, merged = facts.architecture, facts.adapter, settled.weights.kind == "none"
    if adapter and adapter.separates_head(merged=merged):
        shape = replace(shape, tied_head=False)
    return Load(
        architecture=shape,
        weights=settled.weights,
        attention=settled.attention,
        cache=settled.cache,
        context=settled.context,
        device=hardware.device,
        adapter_bytes=adapter_bytes(adapter, shape) if adapter and not merged else 0,
    )


def _placed(facts: ModelFacts, settled: Settled, hardware: Hardware) -> Placement:
    load = _load(facts, settled, hardware)
    # Elsewhere than on CUDA the host's memory is the device's, and holds nothing more.
    room = hardware.host_memory_free - RUNTIME_BYTES["cpu"] if hardware.device == "cuda" else 0
    return place(load, hardware.device_memory_free, max(0, room), settled.offload)


def _slow(facts: ModelFacts, placement: Placement, streamed: bool) -> tuple[str, ...]:
    if placement.resident_layers is None:
        return ()
    layers, memory = facts.architecture.layers, placement.memory
    sources = ((memory.host_bytes, "the host's memory"), (memory.disk_bytes, "disk"))
    where = " and ".join(name for size, name in sources if size)
    moved = layers - placement.resident_layers
    how = "read" if streamed and not memory.host_bytes else "copied"
    return (f"{moved} of {layers} layers are {how} from {where} for every token, which is slow",)


def _adapted(facts: ModelFacts, settled: Settled) -> tuple[str, ...]:
    if facts.adapter is None:
        return ()
    if settled.weights.kind == "none":
        return (f"{facts.adapter.words}, merged into the weights",)
    return (f"{facts.adapter.words}, kept beside the weights: quantized ones cannot take it in exactly",)


def _whereabouts(facts: ModelFacts, placement: Placement, weights: WeightFormat) -> Iterator[str]:
    """Of streamed weights on a GPU: what is not on it, and where it waits."""
    memory, layers, kept = placement.memory, facts.architecture.layers, placement.resident_layers
    if not placement.host_embedding:
        return
    size = format_bytes(embedding_bytes(facts.architecture, weights))
    yield f"embeddings are looked up on the host: their {size} would not fit on the GPU as well"
    if kept is None:
        return
    places = (
        (memory.host_bytes, f"{format_bytes(memory.host_bytes)} in the host's memory, pinned"),
        (memory.disk_bytes, f"{format_bytes(memory.disk_bytes)} in their file on disk"),
    )
    head = " and the output head" if placement.head_waits else ""
    where = " and ".join(name for count, name in places if count)
    yield (
        f"layers {kept + 1} to {layers}{head} wait in 4 bits, {where};"
        " each is copied in while the one before computes"
    )


def _one_of_several(hardware: Hardware, placement: Placement) -> tuple[str, ...]:
    if hardware.devices == 1 or placement.shares:
        return ()
    return (f"one of {hardware.devices} GPUs is used" + (": it holds all" if placement.whole else ""),)
