"""An adapter that is damaged, or does not fit its base model, is refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import CONFIG, WEIGHTS, ours
from support.checkpoints import logits, plan_for
from transformers import (
    AutoModelForCausalLM,
)

from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.adapter_config import adapter_of
from localgemma_cli.models.resolve import resolve

pytestmark = pytest.mark.filterwarnings("ignore")


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
        "takes too long": {"target_modules": "(.+)" * 12 + r"\1\2\3\4\5\6\7\8\9\10\11\12!?"},
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
