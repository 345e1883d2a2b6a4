"""Split a model over several GPUs: whole layers on each, computed one GPU after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from localgemma_cli.planning.hardware import GpuMemory
from localgemma_cli.planning.memory import (
    MemoryEstimate,
    MemoryInputs,
    WeightFormat,
    kv_cache_bytes,
    layer_bytes,
    weights_bytes,
    workspace_bytes,
)


@dataclass(frozen=True)
class LayerShare:
    """Layers `first` to `last` (from 0) on the GPU with that index; `bytes` is all that this GPU holds."""

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
    """Bytes of the parts of a model."""

    layer: int  # with its cache and its part of an adapter
    workspace: int  # on every GPU
    ends: int  # embedding, last norm and head, on the first GPU


def without_streaming(weights: WeightFormat) -> WeightFormat:
    """The format as transformers loads it: only that loader can put layers on several GPUs."""
    return WeightFormat(weights.dtype, weights.kind, weights.nested)


def split_layers(work: MemoryInputs, gpus: Sequence[GpuMemory]) -> tuple[LayerShare, ...]:
    """The layers of each of the fewest GPUs that hold the model, most free memory first; () if none do.

    Each GPU gets layers in proportion to what it could hold, so that all keep some memory free. Embedding,
    last norm and head are on the first: the head shares the embedding's weights.
    """
    sizes, layers = _sizes(work), work.architecture.layers
    roomiest = sorted(gpus, key=lambda gpu: -gpu.free)
    holds = [
        (gpu.free - sizes.workspace - (0 if number else sizes.ends)) // sizes.layer
        for number, gpu in enumerate(roomiest)
    ]
    for count in range(2, len(gpus) + 1):
        if min(holds[:count]) < 1:
            return ()
        if sum(holds[:count]) >= layers:
            return _shares(sizes, roomiest[:count], _bounds(layers, holds[:count]))
    return ()


def split_memory(work: MemoryInputs, shares: Sequence[LayerShare]) -> MemoryEstimate:
    """The memory of all the GPUs together."""
    sizes, layers = _sizes(work), work.architecture.layers
    weights = weights_bytes(work.architecture, work.weights) + work.adapter_bytes
    return MemoryEstimate(
        weights_bytes=weights,
        kv_cache_bytes=layers * sizes.layer + sizes.ends - weights,
        workspace_bytes=len(shares) * sizes.workspace,
        available_bytes=sum(share.available_bytes for share in shares),
    )


def _sizes(work: MemoryInputs) -> _Sizes:
    architecture, weights = work.architecture, work.weights
    layers = architecture.layers
    cache = kv_cache_bytes(architecture, weights.dtype, work.cache, work.context)
    inside = layer_bytes(architecture, weights)
    ends = weights_bytes(architecture, weights) - layers * inside
    return _Sizes(inside + -(-(cache + work.adapter_bytes) // layers), workspace_bytes(work), ends)


def _bounds(layers: int, holds: Sequence[int]) -> list[int]:
    """The first layer of each share, and the end; `layers` is at most the sum of `holds`."""
    total = sum(holds)
    return [-(-layers * held // total) for held in accumulate(holds, initial=0)]


def _shares(sizes: _Sizes, gpus: Sequence[GpuMemory], bounds: Sequence[int]) -> tuple[LayerShare, ...]:
    shares = (
        LayerShare(
            gpu.index, gpu.name, start, end - 1, sizes.workspace + (end - start) * sizes.layer, gpu.free
        )
        for gpu, (start, end) in zip(gpus, pairwise(bounds), strict=True)
        if end > start
    )
    first, *rest = shares
    return (replace(first, bytes=first.bytes + sizes.ends), *rest)
