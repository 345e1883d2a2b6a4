"""The plan itself, and how one preset on one device becomes one."""

from dataclasses import dataclass

from localgemma_cli.errors import UsageError
from localgemma_cli.planning.catalog import ModelFacts
from localgemma_cli.planning.checks import cautions, refuse
from localgemma_cli.planning.choices import (
    Assistant,
    Attention,
    CacheKind,
    CompileMode,
    DeviceKind,
    Dtype,
    Offload,
    WeightKind,
)
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.memory import RUNTIME_BYTES, Load, MemoryEstimate
from localgemma_cli.planning.placement import Placement, place
from localgemma_cli.planning.presets import Preset
from localgemma_cli.planning.settle import Overrides, Settled, settle


@dataclass(frozen=True)
class LoadPlan:
    """All that a loader needs to know; `resident_layers` None: every layer is on the device.

    `streamed`: 4-bit weights that this program makes and keeps itself, rather than through bitsandbytes.
    `hint` says what would fit where this plan does not.
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
    hint: str | None = None

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
            "assistant": None if self.assistant == "none" else self.assistant,
            "context_length": self.context_length,
            "memory": self.memory.to_dict(),
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
        }


def planned(facts: ModelFacts, preset: Preset, hardware: Hardware, overrides: Overrides) -> LoadPlan:
    """The plan of exactly this preset; a UsageError where it cannot work, fit or not."""
    settled = settle(facts, preset, hardware, overrides)
    refuse(facts, settled, hardware)
    placement = _placed(facts, settled, hardware)
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
        context_length=settled.context,
        assistant=settled.assistant,
        memory=placement.memory,
        reasons=(
            f"{preset.name}: {preset.summary}",
            *settled.reasons,
            *_adapted(facts, settled),
            *_one_of_several(hardware),
        ),
        warnings=(
            *cautions(facts, preset, settled, hardware),
            *_slow(facts, placement, settled.weights.streamed),
        ),
    )


def _placed(facts: ModelFacts, settled: Settled, hardware: Hardware) -> Placement:
    load = Load(
        architecture=facts.architecture,
        weights=settled.weights,
        attention=settled.attention,
        cache=settled.cache,
        context=settled.context,
        device=hardware.device,
    )
    # Elsewhere than on CUDA the host's memory is the device's, and holds nothing more.
    room = hardware.host_memory_free - RUNTIME_BYTES["cpu"] if hardware.device == "cuda" else 0
    placement = place(load, hardware.device_memory_free, max(0, room), settled.offload)
    if placement.offload != "none" and settled.compile != "none":
        raise UsageError(
            f"{facts.name} does not fit whole, and a step that copies layers in cannot be compiled.",
            "Take --no-compile, a shorter --context, or a smaller model.",
        )
    return placement


def _slow(facts: ModelFacts, placement: Placement, streamed: bool) -> tuple[str, ...]:
    if placement.resident_layers is None:
        return ()
    layers, memory = facts.architecture.layers, placement.memory
    sources = ((memory.host_bytes, "the host's memory"), (memory.disk_bytes, "disk"))
    where = " and ".join(name for size, name in sources if size)
    moved = layers - placement.resident_layers
    how = "read" if streamed else "copied"
    return (f"{moved} of {layers} layers are {how} from {where} for every token, which is slow",)


def _adapted(facts: ModelFacts, settled: Settled) -> tuple[str, ...]:
    if facts.adapter is None:
        return ()
    if settled.weights.kind == "none":
        return (f"{facts.adapter.words}, merged into the weights",)
    return (f"{facts.adapter.words}, kept beside the weights: quantized ones cannot take it in exactly",)


def _one_of_several(hardware: Hardware) -> tuple[str, ...]:
    return (f"one of {hardware.devices} GPUs is used",) if hardware.devices > 1 else ()
