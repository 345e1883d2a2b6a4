"""Loads a GGUF file, whose tensors are unpacked one by one to the plan's dtype."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from localgemma_cli.backends.pytorch.loading.assemble import WeightSources, assemble_model
from localgemma_cli.events import ProgressSink
from localgemma_cli.models.gguf_config import gguf_config
from localgemma_cli.models.gguf_header import Gguf, read_gguf
from localgemma_cli.optional_dependencies import require_package
from localgemma_cli.planning.plan import LoadPlan

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_1 = {**_IN_LAYER, "ffn_norm": "post_attention_layernorm"}


def load_gguf(plan: LoadPlan, path: Path, progress: ProgressSink) -> PreTrainedModel:
    """Load the model in the file `path`. Raises as `assemble_model` does.

    NotFoundError where the gguf package is missing: it unpacks the weights.
    """
    with require_package("gguf", "gguf", "GGUF files"):
        import gguf  # noqa: F401
    file = read_gguf(path)
    described = gguf_config(file)
    config = AutoConfig.for_model(**described)
    names = _GEMMA_1 if described["model_type"] == "gemma" else _IN_LAYER
    tensors = {
        found: _tensor_reader(file, name)
        for name in file.tensors
        if (found := _parameter_name(name, names)) is not None
    }
    model = assemble_model(plan, config, WeightSources(tensors, {}), path, progress)
    model.generation_config = GenerationConfig.from_model_config(config)
    return model


def _parameter_name(name: str, in_layer: dict[str, str]) -> str | None:
    """The name of a tensor's parameter in transformers; None for rope_freqs and others without one."""
    stem = name.removesuffix(".weight")
    if stem in _TOP:
        return f"{_TOP[stem]}.weight"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match is None or match[2] not in in_layer:
        return None
    return f"model.layers.{match[1]}.{in_layer[match[2]]}.weight"


def _tensor_reader(file: Gguf, name: str) -> Callable[[], torch.Tensor]:
    """A function that reads one tensor, in float32.

    llama.cpp's converter adds one to the weights of Gemma's norms; here it is subtracted again.
    """

    def read() -> torch.Tensor:
        import gguf

        tensor = file.tensors[name]
        kind = gguf.GGMLQuantizationType(tensor.type)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rows = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
        raw = np.memmap(tensor.path, np.uint8, "r", tensor.offset, rows)
        values = torch.from_numpy(np.array(gguf.dequantize(raw, kind), np.float32))
        return values.view(tensor.shape) - 1 if name.endswith("norm.weight") else values.view(tensor.shape)

    return read
