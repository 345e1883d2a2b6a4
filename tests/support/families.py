"""Tiny random checkpoints of each Gemma generation, in the layout their releases have on disk."""

import functools
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from support.models import DEMO
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

_SIZES = {
    "vocab_size": 2304,  # the demo's tokenizer has fewer
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GEMMA_4 = {"global_head_dim": 128, "sliding_window": 24, "initializer_range": 0.15, "num_hidden_layers": 8}
_EFFECTIVE = {"num_kv_shared_layers": 4, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 64}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def configs() -> dict[str, PreTrainedConfig]:
    """By name; the windows are short, so that a test crosses them."""
    third = {"sliding_window": 24, "num_hidden_layers": 7, "initializer_range": 0.15}
    sizes = {**_SIZES, "vocab_size_per_layer_input": _SIZES["vocab_size"]}
    types = ["sliding_attention", "full_attention"] * 4
    return {
        "gemma": GemmaConfig(**_SIZES, num_hidden_layers=3, initializer_range=0.15),
        "gemma3": Gemma3TextConfig(**_SIZES, **third),
        "gemma4-effective": Gemma4TextConfig(**sizes, **_GEMMA_4, **_EFFECTIVE, layer_types=types),
        "gemma4-dense": Gemma4TextConfig(
            **_SIZES,
            **{**_GEMMA_4, "num_hidden_layers": 6},
            hidden_size_per_layer_input=0,
            attention_k_eq_v=True,
            num_global_key_value_heads=1,
        ),
    }


def write(config: PreTrainedConfig, folder: Path, seed: int = 5) -> Path:
    """A text-only checkpoint with the demo's tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _stir(model)
    model.save_pretrained(folder)
    return with_tokenizer(folder)


def _stir(model: PreTrainedModel) -> None:
    """No tensor keeps a neutral value; and a tied head must not repeat the token it was just given."""
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.8)
        for name, parameter in model.named_parameters():
            if name.endswith(("model.norm.weight", "language_model.norm.weight")):
                parameter.normal_(std=2.0)


def with_tokenizer(folder: Path) -> Path:
    for name in _TOKENIZER:
        shutil.copyfile(DEMO / name, folder / name)
    return folder


def write_seeing(folder: Path, *, released: bool) -> Path:
    """Gemma 3 with eyes: a nested text_config, a vision tower, and names as released or as saved today."""
    torch.manual_seed(6)
    text = configs()["gemma3"].to_dict()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config)
    _stir(model)
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = {
        (_released(name) if released else _saved(name)): value for name, value in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return with_tokenizer(folder)


def _bare(name: str) -> str:
    """`language_model.layers…`, `vision_tower…`: a name without where it is hung."""
    return name.removeprefix("model.").replace("language_model.model.", "language_model.")


def _released(name: str) -> str:
    return _bare(name).replace("language_model.", "language_model.model.", 1)


def _saved(name: str) -> str:
    return f"model.{_bare(name)}"


def write_llama(folder: Path) -> Path:
    """No Gemma at all."""
    sizes = {key: value for key, value in _SIZES.items() if key != "head_dim"}
    return write(LlamaConfig(**sizes, num_hidden_layers=2), folder)


@functools.cache
def reference(folder: Path):
    """The checkpoint as transformers itself loads it, whatever it is."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def config_json(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())
