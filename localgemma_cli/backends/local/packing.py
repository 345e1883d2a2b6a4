"""Linear layers in the processor's own blocked layout: the same products bit for bit, read at full bandwidth.

Measured on two cores of an AVX512-BF16 server, one row: 30 GB/s of weights as `nn.Linear`, 42 packed, and the
output head of a 2b 16 GB/s against 30; see docs/benchmarks.md.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from localgemma_cli.backends.local.mapped import in_file, let_go
from localgemma_cli.backends.local.nf4_modules import EmbeddingTable


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


def can_pack(model: PreTrainedModel) -> bool:
    """Where oneDNN has bfloat16 kernels and the weights are plain ones on the CPU."""
    return bool(
        model.device.type == "cpu"
        and model.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack_linears(model: PreTrainedModel) -> None:
    """Replace every `nn.Linear`, one after the other, letting go of each weight once it is packed.

    A tied head gets a packed copy; the embedding stays in the checkpoint's file, of which a step reads a row.
    """
    _pack(model)
    embedding = model.get_input_embeddings()
    if in_file(embedding.weight) and not hasattr(embedding, "_hf_hook"):
        scale = getattr(embedding, "embed_scale", None)
        model.set_input_embeddings(EmbeddingTable(embedding.weight.detach(), model.dtype, scale))


def _pack(model: PreTrainedModel) -> None:
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleDict):  # an adapter's matrices: peft looks at their weight
            continue
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and not hasattr(child, "_hf_hook"):  # a hook moves offloaded weights
                setattr(module, name, PackedLinear(child))
                if in_file(child.weight):
                    let_go(child.weight)
