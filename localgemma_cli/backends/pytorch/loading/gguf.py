"""A GGUF file to a model with plain weights, unpacked tensor by tensor."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from localgemma_cli.backends.pytorch.loading.assemble import Parts, assemble
from localgemma_cli.events import ProgressSink
from localgemma_cli.models.gguf_header import Gguf, read_gguf
from localgemma_cli.optional_dependencies import needed
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
    """See `assemble`."""
    file = read_gguf(path)
    described = file.config()
    config = AutoConfig.for_model(**described)
    names = _GEMMA_1 if described["model_type"] == "gemma" else _IN_LAYER
    tensors = {
        found: _reader(file, name) for name in file.tensors if (found := _renamed(name, names)) is not None
    }
    model = assemble(plan, config, Parts(tensors, {}), path, progress)
    model.generation_config = GenerationConfig.from_model_config(config)
    return model


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """From the vocabulary in the file; raises as `AutoTokenizer` does.

    NotFoundError where the package that knows the file's types is missing; a model's tokenizer comes first.
    """
    with needed("gguf", "gguf", "GGUF files"):
        import gguf  # noqa: F401
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
    )
    return tokenizer


def _renamed(name: str, in_layer: dict[str, str]) -> str | None:
    """A parameter's name in transformers; None for what no Gemma has (rope_freqs)."""
    stem = name.removesuffix(".weight")
    if stem in _TOP:
        return f"{_TOP[stem]}.weight"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match is None or match[2] not in in_layer:
        return None
    return f"model.layers.{match[1]}.{in_layer[match[2]]}.weight"


def _reader(file: Gguf, name: str) -> Callable[[], torch.Tensor]:
    """Reads one tensor in float32; llama.cpp's converter adds one to the weights of Gemma's norms."""

    def read() -> torch.Tensor:
        import gguf

        tensor = file.tensors[name]
        kind = gguf.GGMLQuantizationType(tensor.type)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rows = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
        raw = np.memmap(file.path, np.uint8, "r", tensor.offset, rows)
        values = torch.from_numpy(np.array(gguf.dequantize(raw, kind), np.float32))
        return values.view(tensor.shape) - 1 if name.endswith("norm.weight") else values.view(tensor.shape)

    return read
