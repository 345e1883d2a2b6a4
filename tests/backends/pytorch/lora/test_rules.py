"""The rules of names, ranks and alphas agree with peft's."""

import re
from typing import Any

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from localgemma_cli.backends.pytorch.lora.rules import Rules

NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.up_proj",
    "model.language_model.layers.1.self_attn.o_proj",
    "model.vision_tower.encoder.layers.1.self_attn.q_proj",
    "model.embed_tokens",
    "lm_head",
]
RULES: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["model.layers.0.self_attn.q_proj", "self_attn.o_proj"]},
    {"target_modules": ["proj"]},
    {"target_modules": r".*\.(q|up)_proj|lm_head"},
    {"target_modules": r"q_proj"},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 11]},
    {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": 1, "layers_pattern": ["h", "layers"]},
    {"target_modules": ["q_proj", "lm_head"], "exclude_modules": ["lm_head"]},
    {"target_modules": ["q_proj", "o_proj"], "exclude_modules": r".*vision.*"},
    {"target_modules": ["q_proj", "lm_head", "embed_tokens"], "modules_to_save": ["lm_head", "vision_tower"]},
]


@pytest.mark.parametrize("form", RULES, ids=lambda form: re.sub(r"\W+", "-", str(form)))
def test_the_rules_of_names_are_pefts(form: dict[str, Any]) -> None:
    rules, config = Rules(form, ()), LoraConfig(**form)
    for name in NAMES:
        expected = bool(check_target_module_exists(config, name))
        assert rules.adapts(name, is_linear=True, is_head=name == "lm_head") == expected, name


def test_the_rules_of_ranks_are_pefts() -> None:
    patterns = {"q_proj": 1, r"layers\.1.*": 2, "model.layers.0.self_attn.q_proj": 3, "o_proj|up_proj": 4}
    for order in (patterns, dict(reversed(patterns.items()))):
        rules = Rules({"r": 9, "rank_pattern": order, "lora_alpha": 5, "alpha_pattern": order}, ())
        for name in NAMES:
            key = get_pattern_key(order.keys(), name)
            assert rules.rank(name) == order.get(key, 9)
            assert rules.alpha(name) == order.get(key, 5)
