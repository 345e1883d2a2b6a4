"""Every form of a LoRA adapter that trainers write answers as peft answers, or is refused."""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from support.checkpoints import add_tokenizer, greedy, logits, plan_for, tiny
from support.families import write_seeing
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
)

from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.backends.pytorch.lora.rules import Rules
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.adapter_config import adapter_of
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.plan import LoadPlan

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny("gemma2").to(torch.bfloat16).save_pretrained(folder)
    return add_tokenizer(folder)


def stirred(adapted: PeftModel) -> PeftModel:
    """peft begins where an adapter changes nothing."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                nn.init.normal_(parameter, std=0.1)
            elif "modules_to_save" in name or "trainable_tokens_delta" in name:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.5)
    return adapted


def trained(folder: Path, base: Path, *, rows: int = 0, **form: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        torch.manual_seed(9)
        model.resize_token_embeddings(rows, mean_resizing=False)
    given = {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", **form}
    stirred(get_peft_model(model, LoraConfig(**given))).save_pretrained(folder)
    return folder


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


def planned(base: Path, adapter: Path, preset: str = "exact") -> LoadPlan:
    return plan_for(base, preset, adapter=str(adapter), dtype="float32")


def ours(base: Path, adapter: Path, preset: str = "exact") -> PreTrainedModel:
    return load_model(planned(base, adapter, preset), base, lambda _: None, adapter)


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


# What does not fit, or is damaged, is refused in one line.


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("plain"), base, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    shutil.copytree(plain, tmp_path / "copy")
    return tmp_path / "copy"


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def assert_refused(base: Path, adapter: Path, match: str) -> None:
    with pytest.raises(NotFoundError, match=match) as caught:
        ours(base, adapter)
    assert "\n" not in caught.value.message


def test_damaged_weights_are_refused(base: Path, copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    name = next(iter(tensors))
    worst = dict(tensors)
    worst[name] = torch.full_like(worst[name], float("nan"))
    damaged = {
        "not finite": worst,
        "weights of 1 layers are missing": {
            k: v for k, v in tensors.items() if "layers.1.self_attn.v" not in k
        },
        "not a name that peft gives": {k.removeprefix("base_model.model."): v for k, v in tensors.items()},
        "which adapters do not support": {**tensors, name: tensors[name].to(torch.int32)},
        "no weights for the language model": {},
        "modules that this model does not have": {
            k.replace("layers.2", "layers.7"): v for k, v in tensors.items()
        },
        "changes model.other.weight, which this model does not have": {
            **tensors,
            "base_model.model.model.other.weight": torch.zeros(3),
        },
        "do not have rank 8": {k: (v[:4] if "lora_A" in k else v).contiguous() for k, v in tensors.items()},
        "does not fit this base model: model": {
            k: (v[:7] if "lora_B" in k else v).contiguous() for k, v in tensors.items()
        },
    }
    for match, changed in damaged.items():
        save_file(changed, copy / WEIGHTS)
        assert_refused(base, copy, match)
    for garbage in (b"", b"garbage", b"\xff" * 64, (8).to_bytes(8, "little") + b"nonsense"):
        (copy / WEIGHTS).write_bytes(garbage)
        assert_refused(base, copy, "cannot be read")


def test_a_config_of_something_else_is_refused(base: Path, copy: Path) -> None:
    for match, changes in {
        "does not name": {"target_modules": ["q_proj"]},
        "weights of 3 layers are missing": {"target_modules": ["q_proj", "v_proj", "k_proj"]},
        "do not have rank": {"r": 4},
        "lacks lm_head.weight": {"modules_to_save": ["lm_head"]},
        "takes too long": {"target_modules": "(.+)(.+)(.+)(.+)(.+)(.+)(.+)(.+)" + r"\1\2\3\4\5\6\7\8!?"},
        "is invalid": {"target_modules": "(q_proj"},
        "scipy|loftq": {"init_lora_weights": "loftq"},
        "cannot be used": {"init_lora_weights": "corda"},
    }.items():
        before = (copy / CONFIG).read_text()
        edit(copy, **changes)
        assert_refused(base, copy, match)
        (copy / CONFIG).write_text(before)


def test_a_package_that_an_adapter_needs_is_named(
    base: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "scipy" else find(name, *more)
    )
    edit(copy, init_lora_weights="loftq", loftq_config={"loftq_bits": 4, "loftq_iter": 1})
    assert_refused(base, copy, "needs a package that is not installed.*scipy")


@pytest.mark.parametrize(
    "kind",
    [
        {"layer_replication": [[0, 2], [1, 3]]},
        {"alora_invocation_tokens": [1]},
        {"target_parameters": ["mlp.weight"]},
        {"use_qalora": True},
        {"arrow_config": {"top_k": 1}},
    ],
    ids=lambda kind: next(iter(kind)),
)
def test_what_computes_otherwise_is_refused_by_the_plan(kind: dict[str, Any]) -> None:
    with pytest.raises(NotFoundError, match=next(iter(kind))):
        adapter_of({"peft_type": "LORA", "r": 4, **kind}, "mine")


def test_a_configuration_of_the_base_beside_it_changes_nothing(base: Path, copy: Path) -> None:
    """Trainers write it there."""
    shutil.copyfile(base / "config.json", copy / "config.json")
    source = resolve(str(copy), revision=None, offline=True)
    assert source.folder == base
    assert source.facts.adapter is not None
    assert torch.equal(logits(ours(base, copy)), logits(ours(base, copy)))


def test_a_folder_with_a_whole_model_and_an_adapter_is_asked_which(
    base: Path, plain: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    shutil.copytree(base, both)
    shutil.copytree(plain, both, dirs_exist_ok=True)
    plan = plan_for(both, "exact", dtype="float32")
    with pytest.raises(NotFoundError, match="a whole model and an adapter"):
        load_model(plan, both, lambda _: None)
    assert torch.equal(logits(ours(both, both)), logits(ours(base, plain)))
    (both / WEIGHTS).unlink()  # transformers would look for what is gone
    bare = load_model(plan, both, lambda _: None)
    assert torch.equal(logits(bare), logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)))


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


def test_nothing_of_the_library_is_said_to_the_user(base: Path, plain: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours(base, plain)
