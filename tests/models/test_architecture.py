"""Parameter counts against transformers' own models, built without memory on the meta device."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
)

from localgemma_cli.models.architecture import Architecture
from localgemma_cli.models.catalog import catalogue, facts_from_config, lookup

GEMMA_3 = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 26,
    "hidden_size": 1152,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 6912,
    "vocab_size": 262_144,
    "sliding_window": 512,
    "max_position_embeddings": 32_768,
}
CLASSES = {
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM),
    "gemma4_text": (Gemma4TextConfig, Gemma4ForCausalLM),
}


def meta_model(architecture: Architecture, **extra: object) -> torch.nn.Module:
    config_class, model_class = CLASSES[architecture.family]
    config = config_class(
        num_hidden_layers=architecture.layers,
        hidden_size=architecture.hidden,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        intermediate_size=architecture.ffn,
        vocab_size=architecture.vocabulary,
        tie_word_embeddings=architecture.tied_head,
        **gemma4(architecture),
        **extra,
    )
    with torch.device("meta"):
        return model_class(config)


def gemma4(architecture: Architecture) -> dict[str, object]:
    """What only Gemma 4's config says, in its words."""
    parts = architecture.gemma4
    if parts is None:
        return {}
    every = architecture.layers // (architecture.layers - architecture.sliding_layers)
    return {
        "global_head_dim": parts.full_head_dim,
        "num_global_key_value_heads": parts.full_kv_heads if parts.value_is_key else None,
        "attention_k_eq_v": parts.value_is_key,
        "num_kv_shared_layers": parts.sharing_layers,
        "use_double_wide_mlp": parts.sharing_ffn != architecture.ffn,
        "hidden_size_per_layer_input": parts.layer_embedding,
        "layer_types": [
            "sliding_attention" if (index + 1) % every else "full_attention"
            for index in range(architecture.layers)
        ],
    }


def shapes() -> list[Architecture]:
    gemma_3 = facts_from_config(GEMMA_3, name="1b", id="google/gemma-3-1b-it").architecture
    untied = replace(lookup("7b").architecture, tied_head=False)
    known = {facts.architecture: None for facts in catalogue() if not facts.bundled}
    return list(dict.fromkeys([*known, gemma_3, untied]))


@pytest.mark.parametrize("architecture", shapes(), ids=lambda shape: f"{shape.family}-{shape.parameters}")
def test_every_kind_of_parameter_is_counted(architecture):
    model = meta_model(architecture)
    linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear)]
    layers = [each for each in linear if each is not model.lm_head]
    norms = [value for name, value in model.named_parameters() if "norm" in name]
    assert architecture.parameters == sum(value.numel() for value in model.parameters())
    assert architecture.linear_parameters == sum(each.weight.numel() for each in layers)
    assert architecture.linear_rows == sum(each.out_features for each in layers)
    assert 0 <= architecture.layers * architecture.layer_linear_rows - architecture.linear_rows < 128
    assert architecture.norm_parameters == sum(value.numel() for value in norms)


@pytest.mark.parametrize("name", ["4-e2b", "4-e4b", "4-31b"])
def test_a_config_in_the_releases_words_gives_the_catalogues_shape(name):
    shape = lookup(name).architecture
    text = {
        "model_type": "gemma4_text",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "sliding_window": shape.sliding_window,
        "max_position_embeddings": shape.context_length,
        **gemma4(shape),
    }
    assert (
        facts_from_config({"model_type": "gemma4", "text_config": text}, name="x", id="x").architecture
        == shape
    )
