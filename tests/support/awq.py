"""The AWQ GEMM layout, written from its definition: eight values to an int32, evens first."""

from pathlib import Path

import torch
from support.checkpoints import dense_state, is_linear, write_checkpoint
from transformers import PreTrainedModel

GROUP = 128
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def quantized(weight: torch.Tensor, group: int = GROUP) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """weight [out, in] -> levels [in, out] 0..15, zeros and scales [in / group, out]."""
    grouped = weight.T.float().reshape(-1, group, weight.shape[0])
    low, high = grouped.amin(1).clamp(max=0), grouped.amax(1).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    levels = (grouped / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 15)
    return levels.reshape(weight.T.shape).int(), zeros.int(), scales


def packed(values: torch.Tensor) -> torch.Tensor:
    """[rows, columns] of 0..15 -> int32 [rows, columns / 8]."""
    rows, columns = values.shape
    words = torch.zeros(rows, columns // 8, dtype=torch.int64)
    for place, column in enumerate(ORDER):
        words |= values[:, column::8].long() << (4 * place)
    return words.to(torch.uint32).view(torch.int32)


def write_awq(folder: Path, model: PreTrainedModel, group: int = GROUP) -> dict[str, torch.Tensor]:
    """Writes the checkpoint; returns the state of its dequantized reference, in float32."""
    config = model.config.to_dict() | {
        "architectures": [type(model).__name__],
        "dtype": "float16",
        "quantization_config": {
            "quant_method": "awq",
            "bits": 4,
            "group_size": group,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": None,
        },
    }
    tensors: dict[str, torch.Tensor] = {}
    reference: dict[str, torch.Tensor] = {}
    for name, weight in dense_state(model).items():
        if not is_linear(name):
            tensors[name] = weight.half()
            reference[name] = weight.half().float()
            continue
        levels, zeros, scales = quantized(weight, group)
        stem = name.removesuffix(".weight")
        tensors |= {
            f"{stem}.qweight": packed(levels),
            f"{stem}.qzeros": packed(zeros),
            f"{stem}.scales": scales,
        }
        wide = zeros.repeat_interleave(group, 0), scales.float().repeat_interleave(group, 0)
        reference[name] = ((levels - wide[0]).float() * wide[1]).T.contiguous()
    write_checkpoint(folder, config, tensors)
    return reference
