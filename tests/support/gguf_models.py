"""GGUF files, written by the gguf package as llama.cpp's converter lays Gemma out."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from support.checkpoints import dense_state, tiny
from support.models import demo_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

ARCHITECTURES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
Q8_0, F16, F32 = (getattr(gguf.GGMLQuantizationType, name) for name in ("Q8_0", "F16", "F32"))


def gguf_name(name: str, family: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.weight"
    _, _, layer, inner = stem.split(".", 3)
    if inner == "post_attention_layernorm":
        return f"blk.{layer}.{'ffn_norm' if family == 'gemma' else 'post_attention_norm'}.weight"
    return f"blk.{layer}.{LAYER_NAMES[inner]}.weight"


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: gguf.GGMLQuantizationType,
    edit: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> PreTrainedModel:
    """Writes the file; returns the model with the weights that it holds, in float32."""
    config = model.config
    family = config.model_type
    writer = gguf.GGUFWriter(path, ARCHITECTURES[family])
    add_config(writer, config)
    edit(writer)
    add_vocabulary(writer)
    held = {}
    for name, weight in dense_state(model).items():
        if "norm" in name:
            writer.add_tensor(gguf_name(name, family), weight.float().numpy() + 1)
            held[name] = (weight.float() + 1) - 1
            continue
        data = gguf.quantize(weight.float().numpy(), kind)
        writer.add_tensor(gguf_name(name, family), data, raw_dtype=kind)
        held[name] = torch.from_numpy(np.array(gguf.dequantize(data, kind), np.float32)).view(weight.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    reference.load_state_dict(held, strict=False)
    reference.tie_weights()
    return reference.eval()


def add_config(writer: gguf.GGUFWriter, config: Any) -> None:
    """`config` has the values of config.json as attributes."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type != "gemma":
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "gemma3_text":
        writer.add_rope_freq_base(1_000_000.0)


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokenizer = demo_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    kinds = [
        gguf.TokenType.CONTROL
        if token in special
        else gguf.TokenType.BYTE
        if token.startswith("<0x")
        else gguf.TokenType.NORMAL
        for token in tokens
    ]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template(tokenizer.chat_template)


def sharp(family: str, **more: object) -> PreTrainedModel:
    """Attention that looks somewhere: what it sees then depends on the positions."""
    model = tiny(
        family, num_hidden_layers=6, sliding_window=4, **copy.deepcopy(more)
    )  # transformers adds to it
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(2.0)
            elif name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(2.0)
    return model


LINEAR = {"rope_type": "linear", "factor": 8.0}
SAYINGS = {  # what the file says, and config.json would
    "linear": (
        {"rope_scaling": LINEAR},
        lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), w.add_rope_scaling_factor(8.0)),
    ),
    "linear unnamed": ({"rope_scaling": LINEAR}, lambda w: w.add_rope_scaling_factor(8.0)),
    "linear of old": ({"rope_scaling": LINEAR}, lambda w: w.add_float32(f"{w.arch}.rope.scale_linear", 8.0)),
    "none": (
        {},
        lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.NONE), w.add_rope_scaling_factor(8.0)),
    ),
    "pattern": (
        {"layer_types": [*["sliding_attention"] * 2, "full_attention"] * 2},
        lambda w: w.add_uint32(f"{w.arch}.attention.sliding_window_pattern", 3),
    ),
    "flags": (
        {"layer_types": [*["full_attention"] * 3, *["sliding_attention"] * 3]},
        lambda w: w.add_array(f"{w.arch}.attention.sliding_window_pattern", [False] * 3 + [True] * 3),
    ),
}
LOCAL = (
    {"rope_local_base_freq": 500.0},
    lambda w: w.add_float32("gemma3.rope.freq_base_swa", 500.0),
)
POSITION_CASES = [
    (family, name, *saying)
    for family in ("gemma2", "gemma3_text")
    for name, saying in (SAYINGS | ({"local": LOCAL} if family == "gemma3_text" else {})).items()
]

HIDDEN = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
hidden = lambda name, *more: None if name == {package!r} else find(name, *more)
importlib.machinery.PathFinder.find_spec = hidden
from localgemma_cli.__main__ import main
sys.exit(main())
"""


def run_without(package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program, where `package` is not installed."""
    code = HIDDEN.format(package=package)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=600
    )
