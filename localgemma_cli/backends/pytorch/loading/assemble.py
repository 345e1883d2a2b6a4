"""Builds a model from single tensors and layers, for checkpoint formats that transformers does not load."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from localgemma_cli.backends.pytorch.layers.attention import implementation
from localgemma_cli.errors import NotFoundError
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.safetensors_file import HEAD, Stored, is_tied
from localgemma_cli.planning.plan import LoadPlan

_TORCH = {"I32": torch.int32, "I8": torch.int8, "U8": torch.uint8}
_TORCH |= {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class WeightSources:
    """Where a model's weights come from, by name: each call reads one tensor or makes one linear layer."""

    tensors: Mapping[str, Callable[[], torch.Tensor]]
    linears: Mapping[str, Callable[[], nn.Module]]


def assemble_model(
    plan: LoadPlan, config: PretrainedConfig, sources: WeightSources, folder: Path, progress: ProgressSink
) -> PreTrainedModel:
    """Fill a model of this config, tensor by tensor, on the plan's device and in its dtype.

    NotFoundError where a tensor is missing, ValueError where one does not have the model's shape.
    """
    dtype: torch.dtype = getattr(torch, plan.dtype)
    config.tie_word_embeddings = is_tied(
        config.tie_word_embeddings, sources.tensors, lambda one, other: _equal(one(), other())
    )
    model = empty_model(plan, config, dtype)
    shapes = {name: value.shape for name, value in model.named_parameters(remove_duplicate=False)}
    if config.tie_word_embeddings:
        shapes.pop(HEAD, None)
    made = {f"{name}.weight" for name in sources.linears}
    if missing := sorted(shapes.keys() - made - sources.tensors.keys()):
        raise incomplete_checkpoint(folder, missing)
    for done, (name, shape) in enumerate(shapes.items()):
        progress(LoadProgress("loading", done, len(shapes), unit="tensors"))
        path, _, leaf = name.rpartition(".")
        if name in made:
            model.set_submodule(path, sources.linears[path]().to(plan.device))
        else:
            tensor = _shaped(sources.tensors[name](), shape, name).to(plan.device, dtype)
            setattr(model.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))
    model.tie_weights()
    return model.to(plan.device).eval()  # only buffers are still to be moved


def has_equal_values(one: Stored, other: Stored) -> bool:
    """Whether two stored tensors are equal; reads both."""
    return _equal(tensor_reader(one)(), tensor_reader(other)())


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def incomplete_checkpoint(folder: Path, missing: list[str]) -> NotFoundError:
    return NotFoundError(
        f"The checkpoint in {folder} is incomplete. Missing tensors: {len(missing)}, including {missing[0]}.",
        "Download it again.",
    )


def tensor_reader(stored: Stored) -> Callable[[], torch.Tensor]:
    """A function that reads one tensor of a safetensors file, in its stored dtype."""

    def read() -> torch.Tensor:
        dtype = _TORCH[stored.dtype]
        size = math.prod(stored.shape) * dtype.itemsize
        raw = np.fromfile(stored.file, np.uint8, size, offset=stored.offset)
        return torch.from_numpy(raw).view(dtype).view(stored.shape)

    return read


def linear_over(weight: torch.Tensor) -> nn.Linear:
    """A linear layer without a bias over a weight [out, in]."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def empty_model(plan: LoadPlan, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model with its buffers, whose parameters have a shape but no memory (device "meta")."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=implementation(plan), trust_remote_code=False
        )
    return model


def _shaped(tensor: torch.Tensor, shape: torch.Size, name: str) -> torch.Tensor:
    if tensor.shape != shape or not tensor.is_floating_point():
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {tuple(shape)}")
    return tensor
