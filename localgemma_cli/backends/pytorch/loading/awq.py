"""Loads AWQ checkpoints in the GEMM layout, without the gptqmodel package that transformers requires.

gptqmodel has no CPU wheels and requires another version of PyTorch (gptqmodel 7.7: PyTorch 2.14.1).

A linear layer is stored transposed, eight 4-bit values per int32, in the order 0 2 4 6 1 3 5 7:
`qweight` [in, out / 8], `qzeros` [in / group, out / 8], `scales` [in / group, out] float16.
A weight is (q - zero) * scale. Format: github.com/casper-hansen/AutoAWQ, `WQLinear_GEMM`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.layers.int4 import can_keep, from_levels
from localgemma_cli.backends.pytorch.loading.assemble import (
    WeightSources,
    assemble_model,
    incomplete_checkpoint,
    linear_over,
    tensor_reader,
)
from localgemma_cli.backends.pytorch.loading.transformers_config import (
    add_generation_config,
    unquantized_config,
)
from localgemma_cli.events import ProgressSink
from localgemma_cli.models.safetensors_file import Stored, read_checkpoint
from localgemma_cli.planning.plan import LoadPlan

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where columns 0, 1, ... are among the eight values of an int32
_SUFFIX = ".qweight"


def load_awq(plan: LoadPlan, folder: Path, progress: ProgressSink) -> PreTrainedModel:
    """Keep the weights in 4 bits if the plan's quantization is "awq", else unpack them to its dtype."""
    checkpoint = read_checkpoint(folder)
    config = unquantized_config(folder)
    linears = [name.removesuffix(_SUFFIX) for name in checkpoint if name.endswith(_SUFFIX)]
    sources = WeightSources(
        tensors={name: tensor_reader(stored) for name, stored in checkpoint.items()},
        linears={name: _linear_maker(plan, checkpoint, name, folder) for name in linears},
    )
    model = assemble_model(plan, config, sources, folder, progress)
    add_generation_config(model, folder)
    return model


def _linear_maker(
    plan: LoadPlan, checkpoint: Mapping[str, Stored], name: str, folder: Path
) -> Callable[[], nn.Module]:
    names = [f"{name}.{part}" for part in ("qweight", "qzeros", "scales")]
    if missing := [each for each in names if each not in checkpoint]:
        raise incomplete_checkpoint(folder, missing)
    read = [tensor_reader(checkpoint[each]) for each in names]

    def make() -> nn.Module:
        levels, zeros, scales = (tensor() for tensor in read)
        return _make_linear(plan, unpack_int32(levels), unpack_int32(zeros), scales.float())

    return make


def _make_linear(
    plan: LoadPlan, levels: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor
) -> nn.Module:
    """A linear layer over `levels` [in, out] uint8, `zeros` and `scales` [in / group, out]."""
    group = levels.shape[0] // scales.shape[0]
    if plan.quantization == "awq" and can_keep(levels.T, group):
        return from_levels(levels.T.contiguous(), scales, zeros.float(), plan.device)
    grouped = levels.view(*scales.shape[:1], group, -1)
    weight = (grouped.float() - zeros.float()[:, None]) * scales[:, None]
    return linear_over(weight.view(levels.shape).to(getattr(torch, plan.dtype)).T.contiguous())


def unpack_int32(packed: torch.Tensor) -> torch.Tensor:
    """int32 [rows, columns / 8] -> uint8 [rows, columns] with values 0..15."""
    rows, eighths = packed.shape
    pairs = packed.contiguous().view(torch.uint8).view(rows, eighths, 4)  # the lowest byte has values 0 and 1
    values = torch.stack([pairs & 15, pairs >> 4], dim=-1).view(rows, eighths, 8)
    return values[..., list(_PLACES)].reshape(rows, 8 * eighths)
