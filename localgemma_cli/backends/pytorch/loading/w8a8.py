"""int8 weights with activations that are rounded to int8 per token: compressed-tensors' `int-quantized` form.

A linear layer is stored as `weight` int8 [out, in] and `weight_scale` [out, 1]. Products are exact in int32,
and the weights stay in int8; the compressed-tensors package would unpack them at the first forward.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.loading.assemble import (
    Parts,
    add_generation_config,
    assemble,
    incomplete,
    plain_config,
    reader,
)
from localgemma_cli.events import ProgressSink
from localgemma_cli.models.safetensors_file import Stored, read_checkpoint
from localgemma_cli.planning.plan import LoadPlan

_SUFFIX = ".weight_scale"
_CUDA_ROWS = 32  # the kernel there takes no fewer than 17


class W8A8Linear(nn.Module):
    """[..., in] -> [..., out], in the type of its input."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        """`weight` [out, in] in int8; `scale` [out, 1] or [1]."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Buffer(weight)
        self.scale = nn.Buffer(scale.float().reshape(-1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows, scale = rounded(inputs.reshape(-1, self.in_features))
        product = _product(rows, self.weight) * (scale.float() * self.scale)
        return product.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)


def rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [n, in] as int8, and a scale [n, 1]: the 255 steps of int8 span twice the largest magnitude."""
    scale = rows.abs().amax(dim=-1, keepdim=True) / 127.5
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
    return (rows / scale).round().clamp(-128, 127).to(torch.int8), scale


def _product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[n, in] and [out, in] in int8 -> [n, out] in float32, exact below 2**24."""
    if rows.device.type == "mps":
        return rows.float() @ weight.float().T
    count = rows.shape[0]
    if rows.is_cuda and count < _CUDA_ROWS:
        rows = nn.functional.pad(rows, (0, 0, 0, _CUDA_ROWS - count))
    return torch._int_mm(rows, weight.T)[:count].float()


def load_w8a8(plan: LoadPlan, folder: Path, progress: ProgressSink) -> PreTrainedModel:
    checkpoint = read_checkpoint(folder)
    config = plain_config(folder)
    names = [name.removesuffix(_SUFFIX) for name in checkpoint if name.endswith(_SUFFIX)]
    if lost := [f"{name}.weight" for name in names if f"{name}.weight" not in checkpoint]:
        raise incomplete(folder, lost)
    parts = Parts(
        tensors={name: reader(stored) for name, stored in checkpoint.items()},
        linears={name: _maker(checkpoint[f"{name}.weight"], checkpoint[name + _SUFFIX]) for name in names},
    )
    model = assemble(plan, config, parts, folder, progress)
    add_generation_config(model, folder)
    return model


def _maker(weight: Stored, scale: Stored) -> Callable[[], nn.Module]:
    return lambda: W8A8Linear(reader(weight)(), reader(scale)())
