"""compressed-tensors int8 checkpoints against the library's own computation."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import (
    SHAPE,
    dense_state,
    greedy,
    is_linear,
    loaded,
    logits,
    plan_for,
    prompt_ids,
    tiny,
    write_checkpoint,
)
from torch import nn
from transformers import AutoModelForCausalLM

from localgemma_cli.backends.pytorch.loading.w8a8 import W8A8Linear, quantize_rows
from localgemma_cli.errors import NotFoundError, UsageError
from localgemma_cli.models.model_config import stored_format_of

INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "block_structure": None}
FORM = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": INT8 | {"strategy": "channel", "dynamic": False, "observer": "minmax"},
            "input_activations": INT8 | {"strategy": "token", "dynamic": True, "observer": None},
            "output_activations": None,
        }
    },
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny("gemma2").to(torch.bfloat16)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in dense_state(model).items():
        if not is_linear(name):
            tensors[name] = weight
            continue
        scale = weight.abs().amax(dim=1, keepdim=True) / 127.5
        tensors[name] = (weight / scale).round().clamp(-128, 127).to(torch.int8)
        tensors[f"{name}_scale"] = scale
    config = model.config.to_dict() | {"architectures": ["Gemma2ForCausalLM"], "quantization_config": FORM}
    return write_checkpoint(tmp_path_factory.mktemp("w8a8"), config, tensors)


def test_greedy_tokens_are_those_of_compressed_tensors(checkpoint: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    model = loaded(checkpoint, dtype="float32")
    assert sum(isinstance(each, W8A8Linear) for each in model.modules()) == 21
    # A last bit decides how an activation rounds, so whole models differ more than layers.
    difference = (logits(model) - logits(reference)).abs()
    assert difference.mean() < 0.03 * logits(reference).abs().mean()
    x = torch.randn(1, 5, 384, generator=torch.Generator().manual_seed(0))
    one, other = (each.model.layers[1].mlp.down_proj for each in (model, reference))
    assert torch.allclose(one(x), other(x), rtol=1e-4, atol=1e-5)
    tokens, expected = greedy(model), greedy(reference)
    same = next((i for i, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b), len(tokens))
    assert same == len(tokens) or _undecided(reference, expected[:same], tokens[same], difference.max())
    assert len(set(tokens)) > 3


def _undecided(model: nn.Module, answer: list[int], token: int, noise: torch.Tensor) -> bool:
    """Whether `token` was as good as the best one within what activations' rounding moves a logit."""
    row = logits(model, torch.cat([prompt_ids(), torch.tensor([answer], dtype=torch.int64)], dim=1))[0, -1]
    return bool(row.max() - row[token] < noise)


def test_products_are_exact_and_activations_really_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-128, 128, (48, 256), dtype=torch.int8, generator=generator)
    scale = torch.rand(48, 1, generator=generator) * 0.01
    layer = W8A8Linear(weight, scale)
    for rows in (1, 20):
        x = torch.randn(rows, 256, generator=generator)
        levels, steps = quantize_rows(x)
        exact = (levels.double() @ weight.double().T) * steps.double() * scale.double().T
        assert torch.allclose(layer(x).double(), exact, rtol=1e-6)
        assert not torch.allclose(layer(x), x @ (weight.float() * scale).T, rtol=1e-4)
    assert torch.equal(layer(torch.zeros(1, 256)), torch.zeros(1, 48))


def test_it_stays_in_int8_and_the_plan_says_so(checkpoint: Path) -> None:
    for preset in (None, "exact", "memory"):
        plan = plan_for(checkpoint, preset)
        assert plan.quantization == "w8a8"
        assert any("W8A8" in reason for reason in plan.reasons)
    held = sum(each.nbytes for each in loaded(checkpoint, dtype="float32").state_dict().values())
    # the tied head is listed twice
    head = SHAPE["vocab_size"] * SHAPE["hidden_size"] * 4
    planned = plan_for(checkpoint, dtype="float32").memory.weights_bytes
    assert held - head == pytest.approx(planned, rel=0.01)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("weights", "num_bits", 4),
        ("weights", "strategy", "group"),
        ("input_activations", "dynamic", False),
        ("input_activations", "type", "float"),
    ],
)
def test_other_compressed_forms_are_refused(part: str, key: str, value: object) -> None:
    group = FORM["config_groups"]["group_0"]  # type: ignore[index]
    other = FORM | {"config_groups": {"group_0": group | {part: group[part] | {key: value}}}}
    with pytest.raises(NotFoundError, match="compressed-tensors"):
        stored_format_of({"quantization_config": other}, "mine")


def test_adapters_are_not_supported(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    with pytest.raises(UsageError, match="does not support adapters"):
        plan_for(checkpoint, "exact", adapter=str(tmp_path))
