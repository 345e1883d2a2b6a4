"""LoRA and DoRA adapters against peft's own model; saved by peft itself."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from support.checkpoints import add_tokenizer, greedy, logits, plan_for, same_logits, tiny
from support.hub_server import HubServer
from support.models import demo_tokenizer
from support.program import Program
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.architecture import StoredFormat
from localgemma_cli.models.fetch import tokenizer_folder
from localgemma_cli.models.resolve import resolve, resolve_adapted
from localgemma_cli.models.shapes import GEMMA_2_27B
from localgemma_cli.planning.hardware import GIB, describe_hardware, probe
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny("gemma2").to(torch.bfloat16).save_pretrained(folder)
    return add_tokenizer(folder)


def write_adapter(folder: Path, base: Path, *, dora: bool) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    form = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, use_dora=dora, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, form)
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # peft starts them at zero, where an adapter changes nothing
            nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["lora", "dora"])
def adapter(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp(request.param), base, dora=request.param == "dora")


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what does not depend on the kind."""
    return write_adapter(tmp_path_factory.mktemp("lora"), base, dora=False)


def ours(base: Path, adapter: Path, preset: str, dtype: str) -> PreTrainedModel:
    plan = plan_for(base, preset, adapter=str(adapter), dtype=dtype)
    return load_model(plan, base, lambda _: None, adapter)


def by_peft(base: Path, adapter: Path, dtype: str, *, four_bit: bool = False) -> PeftModel:
    form = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
    )
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        device_map={"": "cpu"},
        quantization_config=form if four_bit else None,
    )
    return PeftModel.from_pretrained(model, adapter).eval()


def test_merged_it_answers_as_pefts_own(base: Path, adapter: Path) -> None:
    merged = ours(base, adapter, "exact", "float32")
    assert not any("lora" in name for name, _ in merged.named_modules())
    tokens = greedy(merged)
    assert tokens == greedy(by_peft(base, adapter, "float32"))
    assert tokens != greedy(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    assert len(set(tokens)) > 3
    reference = by_peft(base, adapter, "bfloat16").merge_and_unload()
    assert same_logits(ours(base, adapter, "exact", "bfloat16"), reference)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beside_4_bit_weights_it_answers_as_pefts_own(base: Path, adapter: Path, dtype: str) -> None:
    kept = ours(base, adapter, "memory", dtype)
    assert any("lora_A" in name for name, _ in kept.named_modules())
    reference = by_peft(base, adapter, dtype, four_bit=True)
    assert same_logits(kept, reference)
    assert greedy(kept) == greedy(reference)


def test_the_plan_says_which_adapter_and_what_becomes_of_it(base: Path, adapter: Path) -> None:
    kind = "DoRA" if "dora" in adapter.name else "LoRA"
    exact = plan_for(base, "exact", adapter=str(adapter))
    memory = plan_for(base, "memory", adapter=str(adapter))
    assert exact.to_dict()["model"]["adapter"] == str(adapter)  # type: ignore[index]
    assert f"{kind} adapter {adapter} of rank 8, merged into the weights" in exact.reasons
    assert any(f"{kind} adapter" in reason and "kept beside" in reason for reason in memory.reasons)
    assert not memory.streamed


@pytest.mark.parametrize(
    "form",
    [
        {"target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"target_modules": ["o_proj"], "use_dora": True},
        {"target_modules": "all-linear", "rank_pattern": {".*": 16}},
        {"target_modules": r".*\.(q|k|v|o|gate|up|down)_proj"},
        {"target_modules": ["k_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=["lora", "dora", "all", "pattern", "with embeddings"],
)
def test_beside_4_bit_weights_its_bytes_are_counted(form: dict[str, Any], base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=8, task_type="CAUSAL_LM", **form)).save_pretrained(tmp_path)
    plan = plan_for(base, "memory", adapter=str(tmp_path), dtype="bfloat16")
    loaded = load_model(plan, base, lambda _: None, tmp_path)
    own = [value for name, value in loaded.named_parameters() if "lora_" in name]
    own += [loaded.get_input_embeddings().weight] * len(form.get("modules_to_save", ()))
    alone = replace(plan.model, adapter=None, stored=StoredFormat("nf4", plan.nested_quantization))
    without = make_plan(alone, "memory", probe("cpu"), Overrides(dtype="bfloat16"), load_presets())
    assert plan.memory.weights_bytes - without.memory.weights_bytes == sum(value.nbytes for value in own)
    assert plan.memory.total_bytes > without.memory.total_bytes


def test_merged_it_adds_no_bytes(base: Path, adapter: Path) -> None:
    merged = plan_for(base, "exact", adapter=str(adapter)).memory
    assert merged.weights_bytes == plan_for(base, "exact").memory.weights_bytes


def test_over_several_gpus_each_has_its_part(base: Path, lora: Path) -> None:
    facts = resolve_adapted(str(base), str(lora), revision=None, offline=True).facts
    facts = replace(facts, architecture=GEMMA_2_27B)
    assert facts.adapter is not None
    hardware = describe_hardware("cuda", (9 * GIB,) * 4, 64 * GIB)
    small, large = (
        make_plan(each, "memory", hardware, Overrides(), load_presets())
        for each in (facts, replace(facts, adapter=replace(facts.adapter, rank=256)))
    )
    assert large.memory.weights_bytes - small.memory.weights_bytes > 7e9
    assert large.memory.kv_cache_bytes == pytest.approx(small.memory.kv_cache_bytes, rel=0.001)
    assert sum(share.bytes for share in large.shares) == large.memory.total_bytes


def test_an_adapter_alone_finds_its_base(base: Path, lora: Path, tmp_path: Path) -> None:
    source = resolve(str(lora), revision=None, offline=True)
    assert source.folder == base
    assert source.facts.adapter is not None
    assert source.facts.adapter.id == str(lora)
    elsewhere = tmp_path / "a"
    shutil.copytree(lora, elsewhere)
    config = json.loads((elsewhere / "adapter_config.json").read_text())
    (elsewhere / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "/gone/away"})
    )
    with pytest.raises(NotFoundError, match="base model of adapter") as caught:
        resolve(str(elsewhere), revision=None, offline=True)
    assert "-m" in caught.value.hint
    assert resolve_adapted(str(base), str(elsewhere), revision=None, offline=True).folder == base


def test_its_own_tokenizer_wins(base: Path, lora: Path, tmp_path: Path) -> None:
    assert tokenizer_folder(base, lora) == base
    own = tmp_path / "own"
    shutil.copytree(lora, own)
    demo_tokenizer().save_pretrained(own)
    assert tokenizer_folder(base, own) == own


def test_tokens_of_its_own_lengthen_the_embedding(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(2050, mean_resizing=False)
    form = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    get_peft_model(model, form).save_pretrained(tmp_path)
    found = ours(base, tmp_path, "exact", "float32")
    assert found.model.embed_tokens.weight.shape[0] == 2050
    assert logits(found).shape[-1] == 2050


def test_another_base_is_refused(lora: Path, tmp_path: Path) -> None:
    tiny("gemma2", intermediate_size=512).save_pretrained(tmp_path)
    with pytest.raises(NotFoundError, match="does not fit this base model") as caught:
        ours(add_tokenizer(tmp_path), lora, "exact", "float32")
    assert "\n" not in caught.value.message


def test_pickled_weights_and_other_kinds_are_refused(base: Path, lora: Path, tmp_path: Path) -> None:
    config = (lora / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(config)
    torch.save(load_file(lora / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    with pytest.raises(NotFoundError, match="pickle"):
        ours(base, tmp_path, "exact", "float32")
    (tmp_path / "adapter_config.json").write_text(json.dumps(json.loads(config) | {"peft_type": "IA3"}))
    with pytest.raises(NotFoundError, match="IA3"):
        resolve(str(tmp_path), revision=None, offline=True)


HIDDEN = "import sys; sys.modules['{}'] = None; from localgemma_cli.cli import main; sys.exit(main())"


def run_without(package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDDEN.format(package), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_without_peft_the_error_names_the_extra(lora: Path) -> None:
    done = run_without("peft", "-m", str(lora), "--preset", "exact", "-q", "hi")
    assert done.returncode == 4
    assert done.stdout == ""
    assert "pip install 'localgemma-cli[adapters]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert run_without("peft", "plan", "-m", str(lora), "--json").returncode == 0


def test_a_whole_answer_through_the_program(program: Program, lora: Path) -> None:
    done = program("-m", str(lora), "--json", "--max-new-tokens", "4", "hi")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["model"]["adapter"] == str(lora)


def test_from_the_hub_an_adapter_brings_its_base(
    program: Program, base: Path, lora: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "adapter"
    shutil.copytree(lora, elsewhere)
    config = json.loads((elsewhere / "adapter_config.json").read_text())
    (elsewhere / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "org/base"})
    )
    with HubServer({"org/base": base, "org/adapter": elsewhere}) as hub:
        program = program.with_environment(HF_ENDPOINT=hub.endpoint)
        words = ["--json", "--max-new-tokens", "4", "hi"]
        done = program(*words, "-m", "org/adapter")
        assert done.returncode == 0, done.stderr
        plan = json.loads(done.stdout)["plan"]
        assert (plan["model"]["id"], plan["model"]["adapter"]) == ("org/base", "org/adapter")
        again = program(*words, "-m", str(base), "--adapter", "org/adapter", "--offline")
        assert again.returncode == 0, again.stderr
