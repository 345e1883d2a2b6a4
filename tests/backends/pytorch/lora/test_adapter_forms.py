"""Every form of a LoRA adapter that trainers write answers as peft answers, or is refused."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.adapters import WEIGHTS, ours, planned, stirred, trained
from support.checkpoints import add_tokenizer, greedy, logits, tiny
from support.families import write_seeing
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3ForConditionalGeneration,
)

from localgemma_cli.errors import NotFoundError

pytestmark = pytest.mark.filterwarnings("ignore")


def by_peft(base: Path, adapter: Path, *, rows: int = 0, four_bit: bool = False) -> PeftModel:
    form = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.float32,
        attn_implementation="eager",
        device_map={"": "cpu"},
        **({"quantization_config": form} if four_bit else {}),
    )
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return PeftModel.from_pretrained(model, adapter).eval()


def assert_as_peft(base: Path, adapter: Path, *, rows: int = 0, beside: bool = True) -> None:
    reference = by_peft(base, adapter, rows=rows)
    merged = ours(base, adapter)
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert torch.allclose(logits(merged), logits(reference), atol=2e-5)
    assert greedy(merged, 12) == greedy(reference, 12)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    vocabulary = plain.config.vocab_size
    assert not torch.allclose(logits(merged)[..., :vocabulary], logits(plain), atol=1e-3)
    if beside:
        assert torch.allclose(
            logits(ours(base, adapter, "memory")),
            logits(by_peft(base, adapter, rows=rows, four_bit=True)),
            atol=2e-5,
        )


FORMS: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "both ends": {"target_modules": ["embed_tokens", "lm_head"]},
    "embedding kept whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head kept whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both kept whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "norms kept whole": {"target_modules": ["q_proj"], "modules_to_save": ["norm", "input_layernorm"]},
    "tied both": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "tied, kept whole": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "all-linear": {"target_modules": "all-linear"},
    "pattern": {"target_modules": r".*layers\.[01]\.(self_attn|mlp)\.(q|v|up)_proj"},
    "ranks": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {r"layers\.1\..*q_proj": 4, "v_proj": 2},
        "alpha_pattern": {"v_proj": 32, "layers.2.mlp.down_proj": 3},
        "use_rslora": True,
    },
    "some layers": {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [0, 2]},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    "excluded": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.1.self_attn.v_proj"]},
    "dora of the head": {"target_modules": ["lm_head", "up_proj"], "use_dora": True},
    "fan in": {"target_modules": ["q_proj"], "fan_in_fan_out": True},
    "bias": {"target_modules": ["q_proj"], "bias": "all"},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 300, 2000]},
}


@pytest.mark.parametrize("name", FORMS)
def test_an_adapter_answers_as_pefts_own(name: str, base: Path, tmp_path: Path) -> None:
    assert_as_peft(base, trained(tmp_path, base, **FORMS[name]))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_one_that_was_begun_from_the_base_changes_the_base_as_peft_does(
    start: str, base: Path, tmp_path: Path
) -> None:
    trained(tmp_path, base, target_modules=["q_proj", "down_proj"], init_lora_weights=start)
    assert_as_peft(base, tmp_path, beside=False)


@pytest.mark.parametrize("form", [{}, {"trainable_token_indices": [2048, 2049]}], ids=["whole", "tokens"])
def test_one_of_a_longer_vocabulary_lengthens_it(form: dict[str, Any], base: Path, tmp_path: Path) -> None:
    trained(tmp_path, base, rows=2052, target_modules=["q_proj"], **form)
    assert_as_peft(base, tmp_path, rows=2052)


def test_a_head_of_its_own_stays_one(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny("gemma2", tie_word_embeddings=False).to(torch.bfloat16).save_pretrained(folder)
    for number, end in enumerate(("lm_head", "embed_tokens")):
        adapter = trained(tmp_path / str(number), add_tokenizer(folder), target_modules=["v_proj", end])
        assert_as_peft(folder, adapter, beside=False)


@pytest.mark.parametrize("name", ["head", "embedding", "both kept whole", "all-linear", "tied both"])
def test_a_head_that_becomes_one_of_its_own_is_counted(name: str, base: Path, tmp_path: Path) -> None:
    trained(tmp_path, base, **FORMS[name])
    held = sum(each.nbytes for each in ours(base, tmp_path).parameters())
    assert planned(base, tmp_path).memory.weights_bytes == held


# An adapter of a model with eyes; its own names, and those that older versions gave the same parts.


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeing(tmp_path_factory.mktemp("seeing"), released=True)


SEEING: dict[str, dict[str, Any]] = {
    "names": {"target_modules": ["q_proj", "v_proj", "fc1"]},
    "all-linear": {"target_modules": "all-linear"},
    "pattern": {"target_modules": r".*language_model.*\.(q|k|o|gate)_proj"},
    "unsloth": {
        "target_modules": r"(?:.*?(?:vision|image|visual|patch_embed|patch_merger|language|text).*?"
        r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|v_proj|down_proj).*?)"
    },
    "ranks": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {r"model\.language_model\.layers\.1\.self_attn\.q_proj": 3},
        "alpha_pattern": {r".*language_model\.layers\.2\..*": 64},
    },
    "ends": {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
}


def seeing_by_peft(folder: Path, adapter: Path | None, form: LoraConfig | None = None) -> nn.Module:
    model = Gemma3ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    if form is not None:
        return get_peft_model(model, form)
    return PeftModel.from_pretrained(model, adapter).eval()


@pytest.mark.parametrize("name", SEEING)
def test_of_a_model_with_eyes_the_language_half_answers_as_the_whole(
    name: str, seeing: Path, tmp_path: Path
) -> None:
    form = LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", **SEEING[name])
    stirred(seeing_by_peft(seeing, None, form)).save_pretrained(tmp_path)
    expected = logits(seeing_by_peft(seeing, tmp_path))
    assert torch.allclose(logits(ours(seeing, tmp_path)), expected, atol=2e-5)
    assert not torch.allclose(
        expected, logits(Gemma3ForConditionalGeneration.from_pretrained(seeing)), atol=1e-3
    )
    if name != "names":
        return
    tensors = {  # before transformers 4.52
        key.replace("model.model.language_model.", "model.language_model.model."): value
        for key, value in load_file(tmp_path / WEIGHTS).items()
    }
    save_file(tensors, tmp_path / WEIGHTS)
    assert torch.allclose(logits(ours(seeing, tmp_path)), expected, atol=2e-5)


def test_an_adapter_of_the_eyes_alone_is_refused(seeing: Path, tmp_path: Path) -> None:
    form = LoraConfig(r=4, target_modules=["fc1", "fc2"], task_type="CAUSAL_LM")
    seeing_by_peft(seeing, None, form).save_pretrained(tmp_path)
    with pytest.raises(NotFoundError, match="no weights for the language model"):
        ours(seeing, tmp_path)


def test_beside_dynamic_4_bit_weights_it_answers_as_pefts_own(base: Path, tmp_path: Path) -> None:
    form = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head", "model.layers.1.mlp", "model.layers.2.self_attn"],
    )
    packed = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, device_map={"": "cpu"}, quantization_config=form
    )
    packed.save_pretrained(tmp_path / "packed")
    folder = add_tokenizer(tmp_path / "packed")
    for dora in (False, True):
        adapter = trained(tmp_path / str(dora), base, target_modules="all-linear", use_dora=dora)
        reference = by_peft(folder, adapter)
        kept = ours(folder, adapter, "memory")
        assert torch.allclose(logits(kept), logits(reference), atol=2e-5)
        assert greedy(kept, 12) == greedy(reference, 12)


def test_nothing_of_the_library_is_said_to_the_user(base: Path, plain: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours(base, plain)
