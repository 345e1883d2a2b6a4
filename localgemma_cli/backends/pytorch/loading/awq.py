"""AWQ checkpoints in the GEMM layout, read without the package that transformers asks for.

gptqmodel has no wheels for a CPU and wants another PyTorch than the one that is pinned here (7.7: 2.14.1).

A linear layer [in, out] is stored transposed, eight 4-bit values to an int32, in the order 0 2 4 6 1 3 5 7:
`qweight` [in, out / 8], `qzeros` [in / group, out / 8], `scales` [in / group, out] in float16;
the weight is (q - zero) * scale.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.layers.int4 import can_keep, from_levels
from localgemma_cli.backends.pytorch.loading.assemble import (
    Parts,
    add_generation_config,
    assemble,
    dense,
    incomplete,
    plain_config,
    reader,
)
from localgemma_cli.events import ProgressSink
from localgemma_cli.models.safetensors_file import Stored, read_checkpoint
from localgemma_cli.planning.plan import LoadPlan

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of column 0, 1, ... among the eight of an int32
_SUFFIX = ".qweight"


def load_awq(plan: LoadPlan, folder: Path, progress: ProgressSink) -> PreTrainedModel:
    """The weights stay in 4 bits where the plan says so, else they are unpacked to its dtype."""
    checkpoint = read_checkpoint(folder)
    config = plain_config(folder)
    linears = [name.removesuffix(_SUFFIX) for name in checkpoint if name.endswith(_SUFFIX)]
    parts = Parts(
        tensors={name: reader(stored) for name, stored in checkpoint.items()},
        linears={name: _maker(plan, checkpoint, name, folder) for name in linears},
    )
    model = assemble(plan, config, parts, folder, progress)
    add_generation_config(model, folder)
    return model


def _maker(
    plan: LoadPlan, checkpoint: Mapping[str, Stored], name: str, folder: Path
) -> Callable[[], nn.Module]:
    names = [f"{name}.{part}" for part in ("qweight", "qzeros", "scales")]
    if missing := [each for each in names if each not in checkpoint]:
        raise incomplete(folder, missing)
    read = [reader(checkpoint[each]) for each in names]

    def make() -> nn.Module:
        levels, zeros, scales = (tensor() for tensor in read)
        return _linear(plan, unpacked(levels), unpacked(zeros), scales.float())

    return make


def _linear(plan: LoadPlan, levels: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> nn.Module:
    """From `levels` [in, out], `zeros` and `scales` [in / group, out]."""
    group = levels.shape[0] // scales.shape[0]
    if plan.quantization == "awq" and can_keep(levels.T, group):
        return from_levels(levels.T.contiguous(), scales, zeros.float(), plan.device)
    grouped = levels.view(*scales.shape[:1], group, -1)
    weight = (grouped.float() - zeros.float()[:, None]) * scales[:, None]
    return dense(weight.view(levels.shape).to(getattr(torch, plan.dtype)).T.contiguous())


def unpacked(packed: torch.Tensor) -> torch.Tensor:
    """int32 [rows, columns / 8] -> uint8 [rows, columns], 0..15."""
    rows, eighths = packed.shape
    pairs = packed.contiguous().view(torch.uint8).view(rows, eighths, 4)  # a low byte holds values 0 and 1
    values = torch.stack([pairs & 15, pairs >> 4], dim=-1).view(rows, eighths, 8)
    return values[..., list(_PLACES)].reshape(rows, 8 * eighths)
