"""4-bit weights from their mapped file to a GPU: what stays there, and what goes round a ring."""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.layers.nf4 import PlainNF4, attach
from localgemma_cli.backends.pytorch.loading.convert_4bit import Part
from localgemma_cli.backends.pytorch.weights.gpu_streaming import (
    Bundle,
    InPieces,
    Link,
    Ring,
    row_pieces,
    take_turns,
)
from localgemma_cli.backends.pytorch.weights.mmap_prefetch import Span, reader, releaser, spans_of
from localgemma_cli.planning.plan import LoadPlan

_HEAD = "lm_head"


@dataclass(frozen=True)
class Copy:
    """The quantized copy: its mapped file, and in that each tensor, all in the plain layout."""

    weights: mmap.mmap
    tensors: Mapping[str, Tensor]
    places: Mapping[str, Span]


def attach_on(link: Link, plan: LoadPlan, model: PreTrainedModel, parts: Sequence[Part], copy: Copy) -> None:
    """Put the copy's tensors in place of the skeleton's: on the device, or as the plan has them wait."""
    _move_buffers(model, link.device)
    layers = model.model.layers
    first = len(layers) if plan.resident_layers is None else plan.resident_layers
    prefixes = [f"model.layers.{index}." for index in range(first, len(layers))]
    groups = [_linear_tensors(parts, prefix) for prefix in prefixes]
    head = [name for name in copy.tensors if plan.head_waits and name.startswith(f"{_HEAD}.")]
    waiting = {name for names in (*groups, head) for name in names}
    tensors = {
        name: tensor.to(link.device, torch.float32 if _is_widened(name, plan) else None)
        for name, tensor in copy.tensors.items()
        if name not in waiting
    }
    if waiting:
        bundles = [*_layer_bundles(copy, prefixes, groups)]
        bundles += _head_bundles(copy, head, model, max(bundle.size for bundle in bundles))
        ring = Ring(bundles, link, plan.memory.host_bytes)
        for item, names in enumerate(groups):
            tensors |= zip(names, ring.views(item), strict=True)
        pieces = [_piece(ring.views(item), model) for item in range(len(groups), len(bundles))]
        take_turns(ring, [*layers[first:], *pieces])
        if head:
            model.lm_head = InPieces(pieces)
    attach(model, [part for part in parts if not (head and part.name == _HEAD)], tensors)


def _is_widened(name: str, plan: LoadPlan) -> bool:
    return plan.wide_scales and name.endswith(".maxima")


def _linear_tensors(parts: Sequence[Part], prefix: str) -> list[str]:
    """What of a layer waits; its norms are too small to be worth it."""
    linear = (part.name for part in parts if part.kind != "copy" and part.name.startswith(prefix))
    return [f"{name}.{leaf}" for name in linear for leaf in ("packed", "maxima")]


def _layer_bundles(copy: Copy, prefixes: Sequence[str], groups: Sequence[Sequence[str]]) -> Iterator[Bundle]:
    spans = spans_of(copy.places, prefixes)
    for names, span in zip(groups, spans, strict=True):
        advice = reader(copy.weights, span), releaser(copy.weights, span)
        yield Bundle(tuple(copy.tensors[name] for name in names), *advice)


def _head_bundles(
    copy: Copy, names: Sequence[str], model: PreTrainedModel, most_bytes: int
) -> Iterator[Bundle]:
    if names:
        packed, maxima = (copy.tensors[name] for name in names)
        yield from map(Bundle, row_pieces(packed, maxima, model.config.vocab_size, most_bytes))


def _piece(tensors: Sequence[Tensor], model: PreTrainedModel) -> nn.Module:
    packed, maxima = tensors
    return PlainNF4(packed, maxima, 2 * packed.numel() // model.config.hidden_size)


def _move_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Frequencies and scales that are computed rather than loaded."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
