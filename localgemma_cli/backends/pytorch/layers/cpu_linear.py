"""Linear layers of a bfloat16 model on a CPU, in the form that its processor multiplies fastest.

With bfloat16 instructions, weights are reordered once into oneDNN's blocked layout: products have the same
bits, and one row reads 42 GB/s of weights instead of 30 on two cores of an AVX512-BF16 server. Without them,
weights are read as bfloat16 and multiplied in float32, by the C extension's product or by PyTorch's. See
docs/benchmarks.md.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.kernels.bfloat16 import (
    CompactWeights,
    bfloat16_rows,
    bind_bfloat16,
    can_compact,
    compact_weights,
    has_bfloat16_rows,
)
from localgemma_cli.backends.pytorch.layers.nf4 import EmbeddingTable
from localgemma_cli.backends.pytorch.weights.mmap_tensors import is_mapped, release_pages
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.planning.host import CPU_BF16_FLAGS, cpu_flags

_ONE_BY_ONE = 3  # rows; for up to this many, reading the weights for each is faster than widening them
_WIDENED = 1 << 20  # weights at a time: 4 MB, which the processor's caches hold


@cache
def is_widened() -> bool:
    """Return whether this processor multiplies bfloat16 in float32; False where the system lists no flags."""
    flags = cpu_flags()
    return flags is not None and not flags & CPU_BF16_FLAGS


# a call that can be repeated, and the contiguous tensor [rows, out] that it writes to
BoundProduct = tuple[Callable[[], object], Tensor]


def bind_rows(module: Any, rows: Tensor) -> BoundProduct:
    """Bind a linear layer to rows [n, in], whose values each call reads; for a step that is repeated.

    A layer's own `bind_rows` saves the cost of its forward in Python. A row's result is the same bits for any
    number of rows.
    """
    bound = _own_product(module, rows)
    return _bind_forward(module, rows) if bound is None else bound


def shares_reads(module: Any) -> bool:
    """Return whether `bind_rows` reads the layer's weights once for several rows."""
    return _own_product(module, torch.empty((1, module.in_features), dtype=torch.bfloat16)) is not None


def _own_product(module: Any, rows: Tensor) -> BoundProduct | None:
    own = getattr(type(module), "bind_rows", None)  # not through a wrapper that passes attributes on
    bound: BoundProduct | None = None if own is None else own(module, rows)
    return bound


def _bind_forward(module: Any, rows: Tensor) -> BoundProduct:
    """One row at a time: a product of several can sum in another order."""
    out = rows.new_empty(len(rows), module.out_features)

    def call() -> None:
        for index in range(len(rows)):
            out[index : index + 1] = module(rows[index : index + 1])

    return call, out


class PackedLinear(nn.Module):
    """`nn.Linear` over a weight packed by oneDNN; [..., in] -> [..., out], bfloat16, no gradient."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        # packed for one row; more rows are as fast with this layout as unpacked
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)

    def forward(self, inputs: Tensor) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        output: Tensor = product(inputs, self.packed, self.bias, "none", [], "")
        return output


class CompactLinear(nn.Module):
    """`nn.Linear` without a bias over the same weights in 12 bits each; [..., in] -> [..., out], bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weights = compact_weights(linear.weight.detach().contiguous())
        self.packed, self.bases = nn.Buffer(weights.packed), nn.Buffer(weights.bases)
        self.raw = nn.Buffer(weights.raw)

    @property
    def _weights(self) -> CompactWeights:
        return CompactWeights(self.packed, self.bases, self.raw)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(1, -1, self.in_features).contiguous()
        return bfloat16_rows(rows, self._weights).view(*inputs.shape[:-1], self.out_features)

    def bind_rows(self, rows: Tensor) -> BoundProduct:
        call, out = bind_bfloat16(rows[None], self._weights)
        return call, out[0]


class WidenedLinear(nn.Module):
    """`nn.Linear` without a bias over the same weight; [..., in] -> [..., out], bfloat16, no gradient.

    Sums are in float32 and rounded once, as in PyTorch's bfloat16 product, but in another order of terms.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        # a mapped file's pages are scattered in memory: reading them takes a sixth longer
        self.weight = nn.Buffer(weight.clone() if is_mapped(weight) else weight.contiguous())

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features)
        if has_bfloat16_rows() and not torch.compiler.is_compiling():
            product = bfloat16_rows(rows.contiguous()[None], self.weight[None])
        elif len(rows) <= _ONE_BY_ONE:
            product = torch.stack([torch.mv(self.weight, row) for row in rows])
        else:
            product = self._multiply_by_pieces(rows)
        return product.view(*inputs.shape[:-1], self.out_features)

    def bind_rows(self, rows: Tensor) -> BoundProduct | None:
        if not has_bfloat16_rows():
            return None
        call, out = bind_bfloat16(rows[None], self.weight[None])
        return call, out[0]

    def _multiply_by_pieces(self, rows: Tensor) -> Tensor:
        """Widen the weights of a few output features at a time, in the processor's cache."""
        product = rows.new_empty(len(rows), self.out_features)
        wide = rows.float()
        step = max(1, _WIDENED // self.in_features)
        scratch = wide.new_empty(min(step, self.out_features), self.in_features)  # fresh memory is slow
        for first in range(0, self.out_features, step):
            piece = self.weight[first : first + step]
            widened = scratch[: len(piece)].copy_(piece)
            product[:, first : first + step] = wide @ widened.T
        return product


def tune_linears(
    model: PreTrainedModel, compact: bool = False, progress: ProgressSink = lambda _: None
) -> None:
    """Replace every plain `nn.Linear` of a bfloat16 model on the CPU by the fastest form for this processor.

    With `compact`, weights are stored in 12 bits each if the processor has a product for it. A tied head gets
    its own copy; the embedding stays in its file, and a step reads one row of it.
    """
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return
    if is_widened():
        replace_linears(model, lambda linear: _widen_linear(linear, compact), progress)
    elif torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        replace_linears(model, PackedLinear, progress)
    else:
        return
    embedding = model.get_input_embeddings()
    plain = isinstance(embedding, nn.Embedding) and not hasattr(embedding, "_hf_hook")  # no adapter's
    if plain and is_mapped(embedding.weight):
        scale = getattr(embedding, "embed_scale", None)
        model.set_input_embeddings(EmbeddingTable(embedding.weight.detach(), model.dtype, scale))


def _widen_linear(linear: nn.Linear, compact: bool) -> nn.Module:
    if linear.bias is not None:
        return linear
    return CompactLinear(linear) if compact and can_compact(linear.in_features) else WidenedLinear(linear)


def replace_linears(
    model: PreTrainedModel, make: Callable[[nn.Linear], nn.Module], progress: ProgressSink = lambda _: None
) -> None:
    """Replace one layer after the other, releasing each weight's pages once it is copied."""
    modules = list(model.modules())
    for done, module in enumerate(modules):
        progress(LoadProgress("packing weights", done, len(modules), unit="tensors"))
        if isinstance(module, nn.ModuleDict):  # an adapter's matrices: peft looks at their weight
            continue
        if getattr(module, "lora_magnitude_vector", None):  # DoRA needs its layer's weight
            continue
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and not hasattr(child, "_hf_hook"):  # a hook moves offloaded weights
                setattr(module, name, make(child))
                if is_mapped(child.weight):
                    release_pages(child.weight)
