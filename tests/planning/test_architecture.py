"""Parameter counts against transformers' own models, built without memory on the meta device."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
)

from localgemma_cli.planning.architecture import Architecture
from localgemma_cli.planning.catalog import HUB_MODELS, facts_from_config, lookup

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
        **extra,
    )
    with torch.device("meta"):
        return model_class(config)


def shapes() -> list[Architecture]:
    gemma_3 = facts_from_config(GEMMA_3, name="1b", id="google/gemma-3-1b-it").architecture
    untied = replace(lookup("7b").architecture, tied_head=False)
    return [*(facts.architecture for facts in HUB_MODELS), gemma_3, untied]


@pytest.mark.parametrize("architecture", shapes(), ids=lambda shape: f"{shape.family}-{shape.parameters}")
def test_every_kind_of_parameter_is_counted(architecture):
    model = meta_model(architecture)
    linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear)]
    layers = [each for each in linear if each is not model.lm_head]
    norms = [value for name, value in model.named_parameters() if "norm" in name]
    assert architecture.parameters == sum(value.numel() for value in model.parameters())
    assert architecture.linear_parameters == sum(each.weight.numel() for each in layers)
    assert architecture.layers * architecture.layer_linear_rows == sum(each.out_features for each in layers)
    assert architecture.norm_parameters == sum(value.numel() for value in norms)


def test_the_small_gemma_3_has_its_published_size():
    assert shapes()[4].parameters == 999_885_952
