"""Places 4-bit weights on a GPU: some stay there, the rest are streamed in from the host at each forward."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.layers.nf4 import PlainNF4
from localgemma_cli.backends.pytorch.loading.quantized_file import (
    Conversion,
    QuantizedWeights,
    attach_tensors,
)
from localgemma_cli.backends.pytorch.weights.gpu_streaming import (
    Bundle,
    Link,
    Ring,
    SplitLinear,
    add_ring_hooks,
    split_rows,
)
from localgemma_cli.backends.pytorch.weights.mmap_prefetch import find_spans, make_prefetch, make_release
from localgemma_cli.planning.plan import LoadPlan

_HEAD = "lm_head"


def attach_on_gpu(link: Link, plan: LoadPlan, model: PreTrainedModel, weights: QuantizedWeights) -> None:
    """Fill the empty `model` from a file in the plain layout; layers beyond `plan.resident_layers` stream."""
    _move_buffers(model, link.device)
    conversions, layers = weights.layout.conversions, model.model.layers
    first = len(layers) if plan.resident_layers is None else plan.resident_layers
    prefixes = [f"model.layers.{index}." for index in range(first, len(layers))]
    groups = [_linear_tensors(conversions, prefix) for prefix in prefixes]
    head = [name for name in weights.tensors if plan.head_waits and name.startswith(f"{_HEAD}.")]
    streamed = {name for names in (*groups, head) for name in names}
    tensors = {
        name: tensor.to(link.device, torch.float32 if _is_widened(name, plan) else None)
        for name, tensor in weights.tensors.items()
        if name not in streamed
    }
    if streamed:
        bundles = [*_layer_bundles(weights, prefixes, groups)]
        bundles += _head_bundles(weights, head, model, max(bundle.size for bundle in bundles))
        ring = Ring(bundles, link, plan.memory.host_bytes)
        for item, names in enumerate(groups):
            tensors |= zip(names, ring.views(item), strict=True)
        pieces = [_head_piece(ring.views(item), model) for item in range(len(groups), len(bundles))]
        add_ring_hooks(ring, [*layers[first:], *pieces])
        if head:
            model.lm_head = SplitLinear(pieces)
    attach_tensors(model, [each for each in conversions if not (head and each.name == _HEAD)], tensors)


def _is_widened(name: str, plan: LoadPlan) -> bool:
    return plan.wide_scales and name.endswith(".maxima")


def _linear_tensors(conversions: Sequence[Conversion], prefix: str) -> list[str]:
    """The tensors of a layer that are streamed; its norms are too small to be worth it."""
    linears = (each.name for each in conversions if each.kind != "copy" and each.name.startswith(prefix))
    return [f"{name}.{leaf}" for name in linears for leaf in ("packed", "maxima")]


def _layer_bundles(
    weights: QuantizedWeights, prefixes: Sequence[str], groups: Sequence[Sequence[str]]
) -> Iterator[Bundle]:
    spans = find_spans(weights.layout.spans, prefixes)
    for names, span in zip(groups, spans, strict=True):
        advice = make_prefetch(weights.buffer, span), make_release(weights.buffer, span)
        yield Bundle(tuple(weights.tensors[name] for name in names), *advice)


def _head_bundles(
    weights: QuantizedWeights, names: Sequence[str], model: PreTrainedModel, most_bytes: int
) -> Iterator[Bundle]:
    if names:
        packed, maxima = (weights.tensors[name] for name in names)
        yield from map(Bundle, split_rows(packed, maxima, model.config.vocab_size, most_bytes))


def _head_piece(tensors: Sequence[Tensor], model: PreTrainedModel) -> nn.Module:
    packed, maxima = tensors
    return PlainNF4(packed, maxima, 2 * packed.numel() // model.config.hidden_size)


def _move_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Move the buffers, which are computed rather than loaded: rotary frequencies and scales."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
