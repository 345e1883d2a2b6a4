"""Linear layers of bfloat16 weights at full bandwidth: in the processor's own blocked layout, or widened.

Packed, products are the same bit for bit. Measured on two cores of an AVX512-BF16 server, one row: 30 GB/s of
weights as `nn.Linear`, 42 packed, and the output head of a 2b 16 GB/s against 30; see docs/benchmarks.md.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.kernels.bfloat16 import takes
from localgemma_cli.backends.pytorch.layers.cpu_linear import CompactLinear, WidenedLinear, is_widened
from localgemma_cli.backends.pytorch.layers.nf4 import EmbeddingTable
from localgemma_cli.backends.pytorch.weights.mmap_tensors import in_file, let_go
from localgemma_cli.events import LoadProgress, ProgressSink


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


def tune_linears(
    model: PreTrainedModel, compact: bool = False, progress: ProgressSink = lambda _: None
) -> None:
    """Replace every plain `nn.Linear` of a bfloat16 model on the CPU by what is fastest on this processor.

    With `compact` weights are kept in 12 bits each where there is a product for that.

    A tied head gets a copy of its own; of the embedding, which stays in its file, a step reads a row.
    """
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return
    if is_widened():
        _replace(model, lambda linear: _widened(linear, compact) if linear.bias is None else linear, progress)
    elif torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _replace(model, PackedLinear, progress)
    else:
        return
    embedding = model.get_input_embeddings()
    plain = isinstance(embedding, nn.Embedding) and not hasattr(embedding, "_hf_hook")  # no adapter's
    if plain and in_file(embedding.weight):
        scale = getattr(embedding, "embed_scale", None)
        model.set_input_embeddings(EmbeddingTable(embedding.weight.detach(), model.dtype, scale))


def _widened(linear: nn.Linear, compact: bool) -> nn.Module:
    return CompactLinear(linear) if compact and takes(linear.in_features) else WidenedLinear(linear)


def _replace(model: PreTrainedModel, make: Callable[[nn.Linear], nn.Module], progress: ProgressSink) -> None:
    """One after the other, letting go of each weight once it is copied."""
    modules = list(model.modules())
    for done, module in enumerate(modules):
        progress(LoadProgress("packing weights", done, len(modules), unit="tensors"))
        if isinstance(module, nn.ModuleDict):  # an adapter's matrices: peft looks at their weight
            continue
        if getattr(module, "lora_magnitude_vector", None):  # DoRA weighs its layer's
            continue
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and not hasattr(child, "_hf_hook"):  # a hook moves offloaded weights
                setattr(module, name, make(child))
                if in_file(child.weight):
                    let_go(child.weight)
