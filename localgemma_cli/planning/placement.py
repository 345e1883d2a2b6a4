"""Which layers stay on the device, and where the others wait."""

from dataclasses import dataclass, replace

from localgemma_cli.planning.choices import Offload, OffloadRule
from localgemma_cli.planning.memory import Load, MemoryEstimate, WeightFormat, layer_bytes, resident


@dataclass(frozen=True)
class Placement:
    """The first `resident_layers` are on the device (None: all), the next on the host, the last on disk."""

    memory: MemoryEstimate
    offload: Offload = "none"
    resident_layers: int | None = None


def place(load: Load, available: int, host_available: int, rule: OffloadRule) -> Placement:
    """All layers on the device where they fit, else as many as do; the others wait elsewhere.

    Embeddings, norms and the whole cache stay on the device. accelerate copies each offloaded layer in for
    every token, unquantized, so one such layer counts as workspace. Streamed weights wait as they are in
    their mapped file, and the next layer is read while one is used: two count. Disk is not weighed: layers
    there are read from the downloaded file itself, or from the quantized copy of it.
    """
    whole = resident(load, available, host_available)
    if rule == "none" or whole.fits:
        return Placement(whole)
    inside = layer_bytes(load.architecture, load.weights)
    streamed = load.weights.streamed
    outside = inside if streamed else layer_bytes(load.architecture, WeightFormat(load.weights.dtype))
    passing = 2 * inside if streamed else outside
    layers = load.architecture.layers
    rest = whole.total_bytes - layers * inside + passing
    kept = max(0, min(layers - 1, (available - rest) // inside))
    on_host = _on_host(layers - kept, host_available // outside, rule)
    memory = replace(
        whole,
        weights_bytes=whole.weights_bytes - (layers - kept) * inside,
        workspace_bytes=whole.workspace_bytes + passing,
        host_bytes=on_host * outside,
        disk_bytes=(layers - kept - on_host) * outside,
    )
    return Placement(memory, "disk" if memory.disk_bytes else "host", kept)


def _on_host(moved: int, room: int, rule: OffloadRule) -> int:
    if rule == "disk":
        return 0
    return moved if rule == "host" else min(moved, room)
