"""A model on several GPUs: whole layers on each, computed one GPU after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from localgemma_cli.planning.hardware import Room
from localgemma_cli.planning.memory import (
    Load,
    MemoryEstimate,
    WeightFormat,
    kv_cache_bytes,
    layer_bytes,
    weights_bytes,
    workspace_bytes,
)


@dataclass(frozen=True)
class Share:
    """Layers `first` to `last`, counted from 0, on the GPU of that index; `bytes` is all it will hold."""

    index: int
    name: str
    first: int
    last: int
    bytes: int
    available_bytes: int

    def to_dict(self) -> dict[str, object]:
        return {
            "index": self.index,
            "name": self.name,
            "layers": [self.first, self.last],
            "bytes": self.bytes,
            "available_bytes": self.available_bytes,
        }


@dataclass(frozen=True)
class _Sizes:
    """Of one layer with its cache and its part of an adapter; what each GPU needs, and the first one too."""

    layer: int
    workspace: int
    ends: int


def undivided(weights: WeightFormat) -> WeightFormat:
    """As transformers loads them: it can put each layer elsewhere, which our own loader of 4 bits cannot."""
    return WeightFormat(weights.dtype, weights.kind, weights.nested)


def spread(load: Load, rooms: Sequence[Room]) -> tuple[Share, ...]:
    """The fewest GPUs that hold the model together, the roomiest first; none where all of them do not.

    Each takes layers in proportion to what it could hold, so that all keep something free. Embedding, norm
    and head are on the first: the head is the embedding, and tokens go in and come out at one place.
    """
    sizes, layers = _sizes(load), load.architecture.layers
    roomiest = sorted(rooms, key=lambda room: -room.free)
    holds = [
        (room.free - sizes.workspace - (0 if number else sizes.ends)) // sizes.layer
        for number, room in enumerate(roomiest)
    ]
    for count in range(2, len(rooms) + 1):
        if min(holds[:count]) < 1:
            return ()
        if sum(holds[:count]) >= layers:
            return _shares(sizes, roomiest[:count], _bounds(layers, holds[:count]))
    return ()


def spread_memory(load: Load, shares: Sequence[Share]) -> MemoryEstimate:
    """All the GPUs together; each was given no more than it holds."""
    sizes, layers = _sizes(load), load.architecture.layers
    weights = weights_bytes(load.architecture, load.weights) + load.adapter_bytes
    return MemoryEstimate(
        weights_bytes=weights,
        kv_cache_bytes=layers * sizes.layer + sizes.ends - weights,
        workspace_bytes=len(shares) * sizes.workspace,
        available_bytes=sum(share.available_bytes for share in shares),
    )


def _sizes(load: Load) -> _Sizes:
    architecture, weights = load.architecture, load.weights
    layers = architecture.layers
    cache = kv_cache_bytes(architecture, weights.dtype, load.cache, load.context)
    inside = layer_bytes(architecture, weights)
    ends = weights_bytes(architecture, weights) - layers * inside
    return _Sizes(inside + -(-(cache + load.adapter_bytes) // layers), workspace_bytes(load), ends)


def _bounds(layers: int, holds: Sequence[int]) -> list[int]:
    """Where each share begins, and the end; `layers` is at most the sum, so none exceeds what it holds."""
    total = sum(holds)
    return [-(-layers * held // total) for held in accumulate(holds, initial=0)]


def _shares(sizes: _Sizes, rooms: Sequence[Room], bounds: Sequence[int]) -> tuple[Share, ...]:
    shares = (
        Share(room.index, room.name, start, end - 1, sizes.workspace + (end - start) * sizes.layer, room.free)
        for room, (start, end) in zip(rooms, pairwise(bounds), strict=True)
        if end > start
    )
    first, *rest = shares
    return (replace(first, bytes=first.bytes + sizes.ends), *rest)
