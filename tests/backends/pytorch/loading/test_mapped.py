"""Weights that are used as they are in their files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import configs, write, write_seeing
from support.models import DEMO
from transformers import AutoModelForCausalLM

from localgemma_cli.backends.pytorch.loading.mapped import can_map, load_mapped
from localgemma_cli.backends.pytorch.weights.mmap_tensors import is_mapped
from localgemma_cli.events import LoadProgress
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import LoadPlan, Overrides, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.render.progress import ignore_progress


def plan_of(folder: Path, preset: str = "exact", **overrides: object) -> LoadPlan:
    facts = resolve(str(folder), revision=None, offline=True).facts
    return make_plan(facts, preset, probe("cpu"), Overrides(device="cpu", **overrides), load_presets())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mapped")
    written = {name: write(config, root / name) for name, config in configs().items()}
    return {**written, "seeing": write_seeing(root / "seeing", released=True), "demo": DEMO}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", [*configs(), "seeing", "demo"])
def test_the_model_is_the_one_transformers_loads(folders: dict[str, Path], name: str, dtype: str) -> None:
    folder, plan = folders[name], plan_of(folders[name], dtype=dtype)
    assert can_map(plan)
    model = load_mapped(plan, folder, ignore_progress)
    assert model is not None
    if name == "seeing":
        from localgemma_cli.backends.pytorch.loading.pretrained import load_pretrained

        expected = load_pretrained(plan, folder, ignore_progress)
    else:
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for ours, theirs in (
        (model.state_dict(), expected.state_dict()),
        (dict(model.named_buffers()), dict(expected.named_buffers())),
    ):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key].dtype == value.dtype, key
            assert torch.equal(ours[key], value), key
    assert model.generation_config.to_diff_dict() == expected.generation_config.to_diff_dict()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_stay_in_the_memory_of_their_file(folders: dict[str, Path]) -> None:
    reports: list[LoadProgress] = []
    model = load_mapped(plan_of(DEMO, dtype="bfloat16"), DEMO, reports.append)
    assert model is not None
    parameters = list(model.parameters())
    assert all(is_mapped(each) for each in parameters)
    assert reports[-1] == LoadProgress("loading", len(parameters) - 1, len(parameters), unit="tensors")


def changed(folder: Path, to: Path, **changes: torch.Tensor | None) -> Path:
    """A copy of a checkpoint; a tensor that becomes None is left out."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    save_file({name: each for name, each in tensors.items() if each is not None}, to / "model.safetensors")
    return to


def test_what_does_not_fit_is_left_to_transformers(tmp_path: Path) -> None:
    norm = "model.norm.weight"
    others = {
        "short": {norm: torch.ones(3, dtype=torch.bfloat16)},
        "lost": {norm: None},
        "whole": {norm: torch.ones(load_file(DEMO / "model.safetensors")[norm].shape, dtype=torch.int32)},
        "head": {"lm_head.weight": load_file(DEMO / "model.safetensors")["model.embed_tokens.weight"]},
    }
    plan = plan_of(DEMO)
    for name, changes in others.items():
        folder = changed(DEMO, tmp_path / name, **changes)
        assert load_mapped(plan, folder, ignore_progress) is None, name


def test_only_whole_unquantized_models_on_the_cpu_are_mapped() -> None:
    assert can_map(plan_of(DEMO))
    assert not can_map(plan_of(DEMO, "memory"))
