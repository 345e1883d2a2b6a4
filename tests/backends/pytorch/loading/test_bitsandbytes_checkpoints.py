"""Pre-quantized bitsandbytes checkpoints, saved by transformers itself, against its own load of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.checkpoints import add_tokenizer, greedy, loaded, logits, plan_for, same_logits, tiny
from support.families import with_tokenizer, write_seeing
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Gemma3ForConditionalGeneration

# What unsloth's 4-bit repositories say; their compute dtype is not this machine's.
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float16,
)
INT8 = BitsAndBytesConfig(load_in_8bit=True)
NF4_PARTS = (
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "quant_state.bitsandbytes__nf4",
)


@pytest.fixture(scope="module", params=["nf4", "int8"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    plain, folder = (tmp_path_factory.mktemp(name) for name in ("plain", request.param))
    tiny("gemma2").to(torch.bfloat16).save_pretrained(plain)
    form = NF4 if request.param == "nf4" else INT8
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.bfloat16, device_map={"": "cpu"}, quantization_config=form
    )
    model.save_pretrained(folder)
    return request.param, add_tokenizer(folder)


def test_the_files_are_in_the_published_layout(checkpoint: tuple[str, Path]) -> None:
    kind, folder = checkpoint
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    stem = "model.layers.0.self_attn.q_proj."
    expected = ["weight", *(f"weight.{part}" for part in NF4_PARTS)] if kind == "nf4" else ["weight", "SCB"]
    assert {stem + each for each in expected} <= names


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_greedy_tokens_are_those_of_transformers(checkpoint: tuple[str, Path], dtype: str) -> None:
    _, folder = checkpoint
    config = json.loads((folder / "config.json").read_text())
    ours = loaded(folder, "memory", dtype=dtype)
    if "bnb_4bit_compute_dtype" in config["quantization_config"]:  # the reference has to be told
        config["quantization_config"]["bnb_4bit_compute_dtype"] = dtype
        (folder / "config.json").write_text(json.dumps(config))
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), device_map={"": "cpu"}, attn_implementation="eager"
    ).eval()
    assert same_logits(ours, reference)
    tokens = greedy(ours)
    assert tokens == greedy(reference)
    assert len(set(tokens)) > 3


def test_the_repositorys_own_form_wins_and_the_plan_says_so(checkpoint: tuple[str, Path]) -> None:
    kind, folder = checkpoint
    words = {"nf4": "bitsandbytes NF4, its scales packed too", "int8": "bitsandbytes int8"}[kind]
    other = {"nf4": "int8", "int8": "nf4"}[kind]
    plain = plan_for(folder, None)
    assert (plain.quantization, plain.offload, plain.streamed) == (kind, "none", False)
    assert plain.to_dict()["model"]["stored"] == words  # type: ignore[index]
    for preset, asked in (("exact", None), ("memory", other), ("memory_extreme", "none")):
        plan = plan_for(folder, preset, quantization=asked)
        assert plan.quantization == kind
        reason = next(each for each in plan.reasons if words in each)
        assert "kept as the repository stores them" in reason
        option = f"preset {preset}" if asked is None else f"--quantization {asked}"
        assert f"({option} has no effect)" in reason


@pytest.mark.parametrize("released", [True, False])
def test_layers_left_in_16_bits_are_found_in_a_model_with_eyes(released: bool, tmp_path: Path) -> None:
    """Dynamic 4-bit checkpoints list them by names of the whole model, which are not the decoder's."""
    whole = write_seeing(tmp_path / "whole", released=released)
    kept = ["model.language_model.layers.1.mlp", "model.language_model.layers.2.self_attn"]
    form = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head", "multi_modal_projector", "vision_tower", *kept],
    )
    how = {"dtype": torch.float32, "device_map": {"": "cpu"}, "attn_implementation": "eager"}
    model = Gemma3ForConditionalGeneration.from_pretrained(whole, quantization_config=form, **how)
    model.save_pretrained(tmp_path / "packed")
    packed = with_tokenizer(tmp_path / "packed")
    ours = loaded(packed, "memory", dtype="float32")
    reference = Gemma3ForConditionalGeneration.from_pretrained(packed, **how).eval()
    assert same_logits(ours, reference)
    kinds = {name: type(module).__name__ for name, module in ours.named_modules()}
    assert kinds["model.layers.1.mlp.up_proj"] != "Linear4bit" == kinds["model.layers.0.mlp.up_proj"]
    config = json.loads((packed / "config.json").read_text())
    for wrong in (None, [], ["model.layers.0.mlp"]):  # the files say it whatever the config says
        config["quantization_config"]["llm_int8_skip_modules"] = wrong
        (packed / "config.json").write_text(json.dumps(config))
        assert torch.equal(logits(loaded(packed, "memory", dtype="float32")), logits(ours))
