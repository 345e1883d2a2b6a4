"""Linear layers of bfloat16 weights at full bandwidth: in the processor's own blocked layout, or widened.

Packed, products are the same bit for bit. Measured on two cores of an AVX512-BF16 server, one row: 30 GB/s of
weights as `nn.Linear`, 42 packed, and the output head of a 2b 16 GB/s against 30; see docs/benchmarks.md.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from localgemma_cli.backends.local.mapped import in_file, let_go
from localgemma_cli.backends.local.nf4_modules import EmbeddingTable
from localgemma_cli.backends.local.widened import WidenedLinear, is_widened


class PackedLinear(nn.Module):
    """`nn.Linear` over a weight packed by oneDNN; [..., in] -> [..., out], bfloat16, no gradient."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        # packed for one row; more rows run over the same layout as fast as unpacked
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        output: torch.Tensor = product(inputs, self.packed, self.bias, "none", [], "")
        return output


def tune_linears(model: PreTrainedModel) -> None:
    """Replace every plain `nn.Linear` of a bfloat16 model on the CPU by what is fastest on this processor."""
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return
    if is_widened():
        _replace(model, lambda linear: WidenedLinear(linear) if linear.bias is None else linear)
    elif torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _pack(model)


def _pack(model: PreTrainedModel) -> None:
    """Pack one weight after the other, letting go of each once it is.

    A tied head gets a packed copy; the embedding stays in the checkpoint's file, of which a step reads a row.
    """
    _replace(model, _packed)
    embedding = model.get_input_embeddings()
    if in_file(embedding.weight) and not hasattr(embedding, "_hf_hook"):
        scale = getattr(embedding, "embed_scale", None)
        model.set_input_embeddings(EmbeddingTable(embedding.weight.detach(), model.dtype, scale))


def _packed(linear: nn.Linear) -> PackedLinear:
    packed = PackedLinear(linear)
    if in_file(linear.weight):
        let_go(linear.weight)
    return packed


def _replace(model: PreTrainedModel, make: Callable[[nn.Linear], nn.Module]) -> None:
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleDict):  # an adapter's matrices: peft looks at their weight
            continue
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and not hasattr(child, "_hf_hook"):  # a hook moves offloaded weights
                setattr(module, name, make(child))
