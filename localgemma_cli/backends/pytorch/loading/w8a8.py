"""Loads W8A8 checkpoints: int8 weights, and activations that are rounded to int8 per token.

The format is compressed-tensors' `int-quantized`: a linear layer has a `weight` [out, in] int8 and a
`weight_scale` [out, 1]. Products are summed exactly, in int32, and the weights stay in int8; the
compressed-tensors package unpacks them at the first forward.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.loading.assemble import (
    WeightSources,
    assemble_model,
    incomplete_checkpoint,
    tensor_reader,
)
from localgemma_cli.backends.pytorch.loading.transformers_config import (
    add_generation_config,
    unquantized_config,
)
from localgemma_cli.events import ProgressSink
from localgemma_cli.models.safetensors_file import Stored, read_checkpoint
from localgemma_cli.planning.plan import LoadPlan

_SUFFIX = ".weight_scale"
_CUDA_ROWS = 32  # the CUDA kernel needs at least 17


class W8A8Linear(nn.Module):
    """x [..., in] -> [..., out], in the dtype of x."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        """`weight` [out, in] int8; `scale` [out, 1] or [1]."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Buffer(weight)
        self.scale = nn.Buffer(scale.float().reshape(-1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows, scale = quantize_rows(inputs.reshape(-1, self.in_features))
        product = _multiply(rows, self.weight) * (scale.float() * self.scale)
        return product.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, in] -> int8 [n, in] and a scale per row [n, 1], by which int8 spans twice the largest magnitude."""
    scale = rows.abs().amax(dim=-1, keepdim=True) / 127.5
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
    return (rows / scale).round().clamp(-128, 127).to(torch.int8), scale


def _multiply(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[n, in] int8 times [out, in] int8 -> [n, out] float32, exact below 2**24."""
    if rows.device.type == "mps":
        return rows.float() @ weight.float().T
    count = rows.shape[0]
    if rows.is_cuda and count < _CUDA_ROWS:
        rows = nn.functional.pad(rows, (0, 0, 0, _CUDA_ROWS - count))
    return torch._int_mm(rows, weight.T)[:count].float()


def load_w8a8(plan: LoadPlan, folder: Path, progress: ProgressSink) -> PreTrainedModel:
    """Load a W8A8 checkpoint; NotFoundError where it lacks tensors, ValueError where it is damaged."""
    checkpoint = read_checkpoint(folder)
    config = unquantized_config(folder)
    names = [name.removesuffix(_SUFFIX) for name in checkpoint if name.endswith(_SUFFIX)]
    if lost := [f"{name}.weight" for name in names if f"{name}.weight" not in checkpoint]:
        raise incomplete_checkpoint(folder, lost)
    sources = WeightSources(
        tensors={name: tensor_reader(stored) for name, stored in checkpoint.items()},
        linears={
            name: _linear_maker(checkpoint[f"{name}.weight"], checkpoint[name + _SUFFIX]) for name in names
        },
    )
    model = assemble_model(plan, config, sources, folder, progress)
    add_generation_config(model, folder)
    return model


def _linear_maker(weight: Stored, scale: Stored) -> Callable[[], nn.Module]:
    return lambda: W8A8Linear(tensor_reader(weight)(), tensor_reader(scale)())
