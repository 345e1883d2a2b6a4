"""Which layers stay on the device, and where the others wait."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from localgemma_cli.planning.layer_split import Share
from localgemma_cli.planning.memory import (
    Load,
    MemoryEstimate,
    WeightFormat,
    embedding_bytes,
    head_bytes,
    layer_bytes,
    resident,
)
from localgemma_cli.types import Offload, OffloadRule

_STEP = 512  # tokens; a context that is found is a multiple of this


@dataclass(frozen=True)
class Placement:
    """The first `resident_layers` are on the device (None: all), the next on the host, the last on disk.

    With streamed weights on a GPU, `host_embedding` leaves the embedding in the host's memory, where rows of
    it are looked up; and `head_waits` lets the head come in pieces after the last layer.
    """

    memory: MemoryEstimate
    offload: Offload = "none"
    resident_layers: int | None = None
    host_embedding: bool = False
    head_waits: bool = False
    shares: tuple[Share, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether all of it fits on the device."""
        return self.offload == "none" and self.memory.fits

    @property
    def capturable(self) -> bool:
        """Whether a step runs on the device alone, without a host that looks up or brings something."""
        return self.offload == "none" and not self.host_embedding


def place(load: Load, available: int, host_available: int, rule: OffloadRule) -> Placement:
    """All layers on the device where they fit, else as many as do; the others wait elsewhere.

    Norms and the whole cache stay on the device. Streamed weights wait as they are, and the next layer comes
    in while one is used: two count as workspace. accelerate copies each offloaded layer in for every token,
    unquantized, so one such layer counts, and the embeddings stay. Disk is not weighed: layers there are read
    from the downloaded file itself, or from the quantized copy of it.
    """
    whole = resident(load, available, host_available)
    on_gpu = load.weights.streamed and load.device == "cuda"
    if on_gpu:
        size = embedding_bytes(load.architecture, load.weights)
        with_embedding = replace(whole, weights_bytes=whole.weights_bytes + size)
        if with_embedding.fits:
            return Placement(with_embedding)
    if rule == "none" or whole.fits:
        return Placement(whole, host_embedding=on_gpu)
    placement = _offloaded(load, whole, rule, head_waits=False)
    if on_gpu and not placement.memory.fits:
        return _offloaded(load, whole, rule, head_waits=True)
    return placement


def _offloaded(load: Load, whole: MemoryEstimate, rule: OffloadRule, *, head_waits: bool) -> Placement:
    streamed, layers = load.weights.streamed, load.architecture.layers
    inside = layer_bytes(load.architecture, load.weights)
    outside = inside if streamed else layer_bytes(load.architecture, WeightFormat(load.weights.dtype))
    passing = 2 * inside if streamed else outside
    head = head_bytes(load.architecture, load.weights) if head_waits else 0
    rest = whole.total_bytes - layers * inside - head + passing
    kept = max(0, min(layers - 1, (whole.available_bytes - rest) // inside))
    waiting = (layers - kept) * outside + head
    on_host = _on_host(waiting, outside, whole.host_available_bytes, rule)
    memory = replace(
        whole,
        weights_bytes=whole.weights_bytes - (layers - kept) * inside - head,
        workspace_bytes=whole.workspace_bytes + passing,
        host_bytes=on_host,
        disk_bytes=waiting - on_host,
    )
    on_gpu = streamed and load.device == "cuda"
    return Placement(memory, "disk" if memory.disk_bytes else "host", kept, on_gpu, head_waits)


def _on_host(waiting: int, layer: int, room: int, rule: OffloadRule) -> int:
    """Bytes of what waits; where not all of it has room, those of whole layers."""
    if rule == "disk":
        return 0
    return waiting if rule == "host" or waiting <= room else min(room, waiting) // layer * layer


def longest_context(limit: int, fits: Callable[[int], bool]) -> int | None:
    """The longest context below `limit` that fits; memory only grows with the context."""
    low, high = 0, (limit - 1) // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle * _STEP):
            low = middle
        else:
            high = middle - 1
    return low * _STEP or None
