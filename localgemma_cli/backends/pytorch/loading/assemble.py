"""A model put together from its parts, where the stored form is none that transformers loads by itself."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from localgemma_cli.backends.pytorch.layers.attention import implementation
from localgemma_cli.backends.pytorch.loading.text_config import text_config
from localgemma_cli.errors import NotFoundError
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.safetensors_file import HEAD, Stored, is_tied
from localgemma_cli.planning.plan import LoadPlan

_TORCH = {"I32": torch.int32, "I8": torch.int8, "U8": torch.uint8}
_TORCH |= {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Parts:
    """What a skeleton is filled with, made when its turn comes: tensors, and linear layers of their own."""

    tensors: Mapping[str, Callable[[], torch.Tensor]]
    linears: Mapping[str, Callable[[], nn.Module]]


def assemble(
    plan: LoadPlan, config: PretrainedConfig, parts: Parts, folder: Path, progress: ProgressSink
) -> PreTrainedModel:
    """NotFoundError where a part is missing, ValueError where one has another shape than the model's."""
    dtype: torch.dtype = getattr(torch, plan.dtype)
    config.tie_word_embeddings = is_tied(
        config.tie_word_embeddings, parts.tensors, lambda one, other: _equal(one(), other())
    )
    model = skeleton(plan, config, dtype)
    shapes = {name: value.shape for name, value in model.named_parameters(remove_duplicate=False)}
    if config.tie_word_embeddings:
        shapes.pop(HEAD, None)
    whole = {f"{name}.weight" for name in parts.linears}
    if missing := sorted(shapes.keys() - whole - parts.tensors.keys()):
        raise incomplete(folder, missing)
    for done, (name, shape) in enumerate(shapes.items()):
        progress(LoadProgress("loading", done, len(shapes), unit="tensors"))
        path, _, leaf = name.rpartition(".")
        if name in whole:
            model.set_submodule(path, parts.linears[path]().to(plan.device))
        else:
            tensor = _shaped(parts.tensors[name](), shape, name).to(plan.device, dtype)
            setattr(model.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))
    model.tie_weights()
    return model.to(plan.device).eval()  # what is left to move are buffers


def same_matrix(one: Stored, other: Stored) -> bool:
    """Whether a head that is stored beside the embedding is only a copy of it."""
    return _equal(reader(one)(), reader(other)())


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def incomplete(folder: Path, missing: list[str]) -> NotFoundError:
    return NotFoundError(
        f"The checkpoint in {folder} lacks {len(missing)} tensors, {missing[0]} among them.",
        "Download it again; a partial copy cannot answer.",
    )


def reader(stored: Stored) -> Callable[[], torch.Tensor]:
    """Reads one tensor of a safetensors file, as it is stored."""

    def read() -> torch.Tensor:
        dtype = _TORCH[stored.dtype]
        size = math.prod(stored.shape) * dtype.itemsize
        raw = np.fromfile(stored.file, np.uint8, size, offset=stored.offset)
        return torch.from_numpy(raw).view(dtype).view(stored.shape)

    return read


def dense(weight: torch.Tensor) -> nn.Linear:
    """A linear layer over a weight [out, in]."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def skeleton(plan: LoadPlan, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its buffers, and parameters that have a shape but no memory."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=implementation(plan), trust_remote_code=False
        )
    return model


def plain_config(folder: Path) -> PretrainedConfig:
    """The language model's config, as if its weights were not quantized."""
    config = text_config(folder)
    for each in ("quantization_config", "compression_config"):
        if hasattr(config, each):
            delattr(config, each)
    return config


def add_generation_config(model: PreTrainedModel, folder: Path) -> None:
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)


def _shaped(tensor: torch.Tensor, shape: torch.Size, name: str) -> torch.Tensor:
    if tensor.shape != shape or not tensor.is_floating_point():
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {tuple(shape)}")
    return tensor
