"""Decide where each layer goes: on the device, over several GPUs, in the host's memory or on disk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from localgemma_cli.errors import UsageError
from localgemma_cli.models.adapter_config import adapter_bytes
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.layer_split import LayerShare, split_layers, split_memory, without_streaming
from localgemma_cli.planning.memory import (
    RUNTIME_BYTES,
    MemoryEstimate,
    MemoryInputs,
    WeightFormat,
    embedding_bytes,
    estimate_memory,
    head_bytes,
    layer_bytes,
)
from localgemma_cli.planning.settings import STREAMED_REASON, Overrides, PlanSettings
from localgemma_cli.planning.tensor_slices import slice_architecture
from localgemma_cli.types import CacheKind, Offload, OffloadRule
from localgemma_cli.units import format_bytes

_STEP = 512  # tokens; a context that is searched for is a multiple of this


@dataclass(frozen=True)
class Placement:
    """The first `resident_layers` are on the device (None: all), the next on the host, the last on disk.

    For streamed weights on a GPU: `host_embedding` keeps the embedding in the host's memory and looks up rows
    there; `head_waits` copies the output head to the GPU in pieces after the last layer.
    """

    memory: MemoryEstimate
    offload: Offload = "none"
    resident_layers: int | None = None
    host_embedding: bool = False
    head_waits: bool = False
    shares: tuple[LayerShare, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the whole model fits on the device."""
        return self.offload == "none" and self.memory.fits

    @property
    def can_capture(self) -> bool:
        """Whether a decode step runs on the device alone, without lookups or copies by the host."""
        return self.offload == "none" and not self.host_embedding


def place_model(
    facts: ModelFacts, settings: PlanSettings, hardware: Hardware, overrides: Overrides
) -> tuple[PlanSettings, Placement]:
    """Where the model's layers go, and the settings adjusted to that, with the reasons for both.

    Raises UsageError if --compile was given and the decode step cannot be compiled there.
    """
    settings, placement = _fit_model(facts, settings, hardware, overrides)
    reasons = _placement_reasons(facts, placement, settings.weights, hardware)
    return replace(settings, reasons=(*settings.reasons, *reasons)), placement


def _fit_model(
    facts: ModelFacts, settings: PlanSettings, hardware: Hardware, overrides: Overrides
) -> tuple[PlanSettings, Placement]:
    """On one device if it fits, else split over GPUs or offloaded; uncompiled or with a shorter context."""
    if overrides.processes > 1:
        part = replace(facts, architecture=slice_architecture(facts.architecture, overrides.processes))
        return settings, _place(part, settings, hardware)
    placement = _place(facts, settings, hardware)
    can_split = settings.weights.kind != "gguf" and not placement.is_whole
    if can_split and (split := _split_over_gpus(facts, settings, hardware, overrides)):
        return split
    if settings.compile != "none" and not placement.can_capture:
        if overrides.compile or placement.offload != "none":
            raise UsageError(
                f"{facts.name} does not fit on the device as a whole, so its decode step cannot be compiled.",
                "Use --no-compile, a shorter --context, or a smaller model.",
            )
        why = "not compiled, because a step that looks up embeddings on the host cannot be captured"
        settings = _uncompiled(settings, why)
    if placement.memory.fits or settings.offload == "none" or overrides.context is not None:
        return settings, placement
    return _shorten_context(facts, settings, placement, hardware)


def _uncompiled(settings: PlanSettings, why: str) -> PlanSettings:
    cache: CacheKind = "full" if settings.cache == "static" else settings.cache
    return replace(settings, compile="none", cache=cache, reasons=(*settings.reasons, why))


def _shorten_context(
    facts: ModelFacts, settings: PlanSettings, placement: Placement, hardware: Hardware
) -> tuple[PlanSettings, Placement]:
    """The longest context that fits, if there is one."""

    def place(context: int) -> Placement:
        return _place(facts, replace(settings, context=context), hardware)

    context = find_longest_context(settings.context, lambda length: place(length).memory.fits)
    if context is None:
        return settings, placement
    why = f"a context of {context} tokens, because a longer cache does not fit"
    return replace(settings, context=context, reasons=(*settings.reasons, why)), place(context)


def _split_over_gpus(
    facts: ModelFacts, settings: PlanSettings, hardware: Hardware, overrides: Overrides
) -> tuple[PlanSettings, Placement] | None:
    """Layers split over several GPUs, uncompiled; None if the GPUs together do not hold the model."""
    work = _workload(facts, settings, hardware)
    work = replace(work, weights=without_streaming(settings.weights))
    shares = split_layers(work, hardware.gpus) if overrides.draft is None else ()
    if not shares:
        return None
    if overrides.compile:
        raise UsageError(
            f"{facts.name} does not fit on one GPU, and a decode step over several GPUs cannot be compiled.",
            "Use --no-compile, a shorter --context, or a smaller model.",
        )
    uncompiled = "; not compiled, because each step runs on several GPUs"
    why = f"layers are split over {len(shares)} GPUs, because one does not hold them all"
    settings = _uncompiled(settings, why + (uncompiled if settings.compile != "none" else ""))
    reasons = tuple(reason for reason in settings.reasons if reason != STREAMED_REASON["cuda"])
    memory = split_memory(work, shares)
    return replace(settings, weights=work.weights, reasons=reasons), Placement(memory, shares=shares)


def _workload(facts: ModelFacts, settings: PlanSettings, hardware: Hardware) -> MemoryInputs:
    shape, adapter, merged = facts.architecture, facts.adapter, settings.weights.kind == "none"
    if adapter and adapter.separates_head(merged=merged):
        shape = replace(shape, tied_head=False)
    return MemoryInputs(
        architecture=shape,
        weights=settings.weights,
        attention=settings.attention,
        cache=settings.cache,
        context=settings.context,
        device=hardware.device,
        adapter_bytes=adapter_bytes(adapter, shape) if adapter and not merged else 0,
    )


def _place(facts: ModelFacts, settings: PlanSettings, hardware: Hardware) -> Placement:
    work = _workload(facts, settings, hardware)
    # Without CUDA the host's memory is the device's own, so nothing can be offloaded to it.
    on_host = hardware.host_memory_free - RUNTIME_BYTES["cpu"] if hardware.device == "cuda" else 0
    return place_layers(work, hardware.device_memory_free, max(0, on_host), settings.offload)


def place_layers(work: MemoryInputs, available: int, host_available: int, rule: OffloadRule) -> Placement:
    """All layers on the device if they fit, else as many as do and the others elsewhere; sizes in bytes.

    Norms and the whole cache stay on the device. Streamed weights are offloaded as they are, and the next
    layer is copied in while one computes: two layers count as workspace. accelerate copies each offloaded
    layer in for every token, unquantized, so one such layer counts, and the embeddings stay on the device.
    llama.cpp computes the layers that do not fit on the processor, so no workspace is added.
    Disk space is not checked: offloaded layers are read from the downloaded or the quantized file.
    """
    whole = estimate_memory(work, available, host_available)
    on_gpu = work.weights.streamed and work.device == "cuda"
    if on_gpu:
        size = embedding_bytes(work.architecture, work.weights)
        with_embedding = replace(whole, weights_bytes=whole.weights_bytes + size)
        if with_embedding.fits:
            return Placement(with_embedding)
    if rule == "none" or whole.fits:
        return Placement(whole, host_embedding=on_gpu)
    placement = _offload(work, whole, rule, head_waits=False)
    if on_gpu and not placement.memory.fits:
        return _offload(work, whole, rule, head_waits=True)
    return placement


def _offload(work: MemoryInputs, whole: MemoryEstimate, rule: OffloadRule, *, head_waits: bool) -> Placement:
    weights, layers = work.weights, work.architecture.layers
    inside = layer_bytes(work.architecture, weights)
    moved_as_stored = weights.streamed or weights.kind == "gguf"
    outside = inside if moved_as_stored else layer_bytes(work.architecture, WeightFormat(weights.dtype))
    passing = 0 if weights.kind == "gguf" else 2 * inside if weights.streamed else outside
    head = head_bytes(work.architecture, work.weights) if head_waits else 0
    rest = whole.total_bytes - layers * inside - head + passing
    kept = max(0, min(layers - 1, (whole.available_bytes - rest) // inside))
    waiting = (layers - kept) * outside + head
    on_host = _host_part(waiting, outside, whole.host_available_bytes, rule)
    memory = replace(
        whole,
        weights_bytes=whole.weights_bytes - (layers - kept) * inside - head,
        workspace_bytes=whole.workspace_bytes + passing,
        host_bytes=on_host,
        disk_bytes=waiting - on_host,
    )
    on_gpu = weights.streamed and work.device == "cuda"
    return Placement(memory, "disk" if memory.disk_bytes else "host", kept, on_gpu, head_waits)


def _host_part(waiting: int, layer: int, available: int, rule: OffloadRule) -> int:
    """Bytes of the `waiting` ones that go to the host; whole layers if not all of them fit there."""
    if rule == "disk":
        return 0
    return waiting if rule == "host" or waiting <= available else min(available, waiting) // layer * layer


def find_longest_context(limit: int, fits: Callable[[int], bool]) -> int | None:
    """The longest context below `limit` that fits; memory grows with the context, so it is bisected."""
    low, high = 0, (limit - 1) // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle * _STEP):
            low = middle
        else:
            high = middle - 1
    return low * _STEP or None


def _placement_reasons(
    facts: ModelFacts, placement: Placement, weights: WeightFormat, hardware: Hardware
) -> Iterator[str]:
    """Which parts of the model are not on the device, and which of several GPUs is used."""
    if placement.host_embedding:
        size = format_bytes(embedding_bytes(facts.architecture, weights))
        yield f"embeddings are looked up on the host, because their {size} would not fit on the GPU"
        if placement.resident_layers is not None:
            yield _waiting_layers(facts, placement, placement.resident_layers)
    if hardware.gpu_count > 1 and not placement.shares:
        used = f"one of {hardware.gpu_count} GPUs is used"
        yield f"{used}, because it holds the whole model" if placement.is_whole else used


def _waiting_layers(facts: ModelFacts, placement: Placement, resident: int) -> str:
    memory = placement.memory
    places = (
        (memory.host_bytes, f"{format_bytes(memory.host_bytes)} in the host's memory, pinned"),
        (memory.disk_bytes, f"{format_bytes(memory.disk_bytes)} in their file on disk"),
    )
    head = " and the output head" if placement.head_waits else ""
    where = " and ".join(name for count, name in places if count)
    return (
        f"layers {resident + 1} to {facts.architecture.layers}{head} wait in 4 bits, {where};"
        " each is copied in while the one before it computes"
    )


def placement_warnings(facts: ModelFacts, placement: Placement, weights: WeightFormat) -> Iterator[str]:
    if placement.resident_layers is None:
        return
    layers, memory = facts.architecture.layers, placement.memory
    sources = ((memory.host_bytes, "the host's memory"), (memory.disk_bytes, "disk"))
    where = " and ".join(name for size, name in sources if size)
    moved = layers - placement.resident_layers
    if weights.kind == "gguf":
        yield f"{moved} of {layers} layers are computed on the processor, which is slow"
        return
    how = "read" if weights.streamed and not memory.host_bytes else "copied"
    yield f"{moved} of {layers} layers are {how} from {where} for every token, which is slow"
