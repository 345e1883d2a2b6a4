"""What a layer's inputs are while the model reads the text, against transformers' own forward pass."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import plan_for, tiny
from support.models import DEMO, demo_fp32, demo_tokenizer

from localgemma_cli.backends.pytorch.loading.calibration import TEXT, measure_importance
from localgemma_cli.events import LoadProgress
from localgemma_cli.models.safetensors_file import read_checkpoint

LAYERS = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.o_proj",
    "model.layers.2.mlp.down_proj",
)


def test_importance_is_the_mean_square_of_a_layers_inputs() -> None:
    told: list[LoadProgress] = []
    plan = plan_for(DEMO, quantization="int4", dtype="bfloat16")
    found = measure_importance(plan, DEMO, read_checkpoint(DEMO), told.append)
    model, tokenizer = demo_fp32(), demo_tokenizer()
    squares = {}

    def keep(name: str) -> object:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            squares[name] = inputs[0][0, 1:].square().mean(0)

        return model.get_submodule(name).register_forward_pre_hook(hook)

    hooks = [keep(name) for name in (*LAYERS, "lm_head")]
    with torch.inference_mode():
        model(torch.tensor([tokenizer(TEXT).input_ids[:257]]))
    for each in hooks:
        each.remove()
    for name, expected in squares.items():
        assert torch.allclose(found[name], expected + 1e-3 * expected.mean(), rtol=1e-3), name
    assert len(found) == 7 * model.config.num_hidden_layers + 1
    assert {(each.stage, each.total) for each in told} == {("calibrating", model.config.num_hidden_layers)}


@pytest.mark.parametrize("damage", ["no tokenizer", "infinite"])
def test_a_model_that_cannot_read_is_quantized_without(tmp_path: Path, damage: str) -> None:
    model = tiny().to(torch.bfloat16)
    if damage == "infinite":
        model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.inf
        (tmp_path / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    model.save_pretrained(tmp_path)
    told: list[str] = []
    plan = plan_for(tmp_path, quantization="int4", dtype="bfloat16")
    found = measure_importance(
        plan, tmp_path, read_checkpoint(tmp_path), lambda each: told.append(each.stage)
    )
    assert found == {}
    assert told[-1].startswith("quantizing without calibration: ")
