"""What `localgemma bench` measures with: random weights, gauges, processes; no test asks how fast."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from support.models import DEMO, own_tokenizer

from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.bench import bandwidth, engine, reference, subprocess_runner, timed_backend
from localgemma_cli.bench import random_weights as dummy
from localgemma_cli.bench.gauges import step_bytes, tensor_bytes
from localgemma_cli.bench.host_peak import host_peak, reset_host_peak
from localgemma_cli.bench.job import ChatWorkload, Job, Workload
from localgemma_cli.bench.prompts import prompt_ids
from localgemma_cli.errors import DiskSpaceError, DoesNotFitError, LocalGemmaError, NotFoundError, UsageError
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.load_plan import LoadPlan
from localgemma_cli.planning.memory import WeightFormat, weights_bytes
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.render.progress import ignore_progress

SHAPE = resolve("demo", revision=None, offline=True).facts.architecture
SHORT, LONG = Workload(10, 6), Workload(80, 12)  # the second goes past the demo's sliding window


def plan_for(preset: str = "exact", **overrides: object) -> LoadPlan:
    facts = resolve("demo", revision=None, offline=True).facts
    return make_plan(facts, preset, probe("cpu"), Overrides(device="cpu", **overrides), load_presets())


def job(weights: Path | None, plan: LoadPlan | None = None, **changes: object) -> Job:
    base = Job("localgemma", plan or plan_for(dtype="float32"), weights, DEMO, (SHORT, LONG), repeats=2)
    return replace(base, **changes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dummy") / "model"
    dummy.write_checkpoint(SHAPE, folder, seed=0)
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a load keeps for the next is kept in the test's own folder."""
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))


# Random weights


def test_random_weights_have_the_shape_of_the_model_and_are_normal() -> None:
    model = dummy.load_dummy(plan_for(dtype="float32"), seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == SHAPE.parameters
    assert model.lm_head.weight is model.model.embed_tokens.weight
    up = model.model.layers[0].mlp.up_proj.weight.detach()
    assert abs(float(up.mean())) < 0.001
    assert float(up.std()) == pytest.approx(0.02, rel=0.05)


def test_no_two_layers_and_no_two_rows_are_alike() -> None:
    model = dummy.load_dummy(plan_for(dtype="float32"), seed=0)
    ups = [layer.mlp.up_proj.weight for layer in model.model.layers]
    assert len({float(up.detach().sum()) for up in ups}) == len(ups)
    for matrix in (model.lm_head.weight, *ups):
        assert len(torch.unique(matrix, dim=0)) == len(matrix)


def test_a_tensor_longer_than_the_block_goes_round_and_on() -> None:
    block = torch.arange(7, dtype=torch.bfloat16)
    tensor = dummy.RandomTensor((4, 5), block, start=3)
    expected = [(3 + place) % 7 for place in range(20)]
    assert tensor[...].flatten().tolist() == expected
    assert tensor[1:3].flatten().tolist() == expected[5:15]
    assert tensor.get_shape() == [4, 5]


def test_a_seed_is_the_same_model_in_memory_and_in_a_file(checkpoint: Path) -> None:
    plan = plan_for(dtype="float32")
    memory, other = dummy.load_dummy(plan, seed=0).state_dict(), dummy.load_dummy(plan, seed=1).state_dict()
    for shard in checkpoint.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # a safetensors file is no mapping
                assert torch.equal(file.get_tensor(name).float(), memory[name])
                assert not torch.equal(memory[name], other[name])


@pytest.mark.parametrize(("kind", "module"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_random_weights_come_in_the_plans_own_format(kind: str, module: str) -> None:
    plan = replace(plan_for("memory", quantization=kind), streamed=False)
    model = dummy.load_dummy(plan, seed=0)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == module


@pytest.mark.parametrize("changes", [{"resident_layers": 2, "offload": "disk"}, {"streamed": True}])
def test_weights_that_are_read_from_files_need_a_file(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="from files") as caught:
        dummy.load_dummy(replace(plan_for(), **changes), seed=0)
    assert "dummy-file" in caught.value.hint


def test_a_checkpoint_is_written_in_shards_with_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dummy, "_SHARD_BYTES", 500_000)
    dummy.write_checkpoint(SHAPE, tmp_path / "model", seed=0)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    assert shards == {path.name for path in (tmp_path / "model").glob("*.safetensors")}
    assert index["metadata"]["total_size"] == 2 * SHAPE.parameters
    model = load_model(plan_for(dtype="float32"), tmp_path / "model", ignore_progress)
    assert tensor_bytes(model) >= 4 * SHAPE.parameters


def test_a_folder_that_holds_the_checkpoint_is_used_again_and_any_other_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    weights = next(folder.glob("*.safetensors"))
    before = weights.stat().st_mtime_ns
    dummy.write_checkpoint(SHAPE, folder, seed=0)
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="not empty"):
        dummy.write_checkpoint(SHAPE, folder, seed=1)


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2, 1, 1))
    with pytest.raises(DiskSpaceError):
        dummy.write_checkpoint(SHAPE, tmp_path / "model", seed=0)
    assert not list((tmp_path / "model").iterdir())


@pytest.mark.parametrize("name", ["2b", "7b", "9b", "27b"])
def test_the_built_in_shapes_are_transformers_own(name: str) -> None:
    from transformers import AutoModelForCausalLM

    architecture = resolve(name, revision=None, offline=True).facts.architecture
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(dummy.config_of(architecture))
    assert sum(parameter.numel() for parameter in model.parameters()) == architecture.parameters
    sliding = [
        each for each in getattr(model.config, "layer_types", None) or () if each == "sliding_attention"
    ]
    assert len(sliding) == architecture.sliding_layers


# Gauges


def test_a_step_reads_every_tensor_once_and_a_row_of_the_embedding() -> None:
    model = dummy.load_dummy(plan_for(dtype="float32"), seed=0)
    buffers = {buffer.data_ptr(): buffer.nbytes for buffer in model.buffers()}
    everything = sum(parameter.nbytes for parameter in model.parameters()) + sum(buffers.values())
    assert tensor_bytes(model) == everything
    row = 4 * SHAPE.hidden
    assert step_bytes(model) == pytest.approx(everything + row, abs=8)  # the tied head is read whole
    model.lm_head = torch.nn.Linear(SHAPE.hidden, SHAPE.vocabulary, bias=False)
    embedding = 4 * SHAPE.vocabulary * SHAPE.hidden
    assert tensor_bytes(model) == pytest.approx(everything + embedding, rel=1e-5)
    assert step_bytes(model) == pytest.approx(everything, rel=1e-3)


@pytest.mark.parametrize(("kind", "nested"), [("nf4", False), ("nf4", True), ("int8", False)])
def test_quantizations_own_tensors_are_counted(kind: str, nested: bool) -> None:
    plan = plan_for("memory_extreme" if nested else "memory", quantization=kind)
    plan = replace(plan, nested_quantization=nested, streamed=False)
    model = dummy.load_dummy(plan, seed=0)
    planned = weights_bytes(SHAPE, WeightFormat(plan.dtype, plan.quantization, nested))
    assert tensor_bytes(model) == pytest.approx(planned, rel=0.03)  # code books and nested offsets are small


def test_packed_weights_are_counted(checkpoint: Path) -> None:
    plan = plan_for(dtype="bfloat16")
    read = step_bytes(load_model(plan, checkpoint, ignore_progress))
    assert read == pytest.approx(2 * SHAPE.parameters, rel=0.1)  # oneDNN may pad its blocks


def test_the_bandwidth_is_a_positive_rate() -> None:
    assert bandwidth.measure("cpu", most=1 << 24) > 0


def test_the_peak_is_that_of_all_processes_and_starts_again() -> None:
    script = "block = bytearray(300_000_000); print(); input(); del block; print(); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    before = host_peak()
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as child:
        child.stdout.readline()
        assert host_peak() - before >= 300_000_000
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        assert host_peak() - before >= 300_000_000
        if sys.platform == "linux":
            reset_host_peak()
            assert host_peak() - before < 300_000_000
        child.communicate(b"\n")


def test_the_way_from_id_to_text_is_timed() -> None:
    assert 0 < timed_backend.stream_cost(own_tokenizer()) < 1


def test_prompts_are_the_same_everywhere_and_begin_differently() -> None:
    firsts = [prompt_ids(2048, work, 0, repeat)[:3] for work in (SHORT, LONG) for repeat in range(2)]
    assert len(set(firsts)) == 4
    assert prompt_ids(2048, SHORT, 0, 0) == prompt_ids(2048, SHORT, 0, 0)
    assert prompt_ids(2048, SHORT, 0, 0) != prompt_ids(2048, SHORT, 1, 0)
    assert all(256 <= token < 2048 for token in prompt_ids(2048, LONG, 0, 0))


# Engines


def test_the_engine_answers_as_the_reference_does(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (timed_backend, reference):
        monkeypatch.setattr(module, "others_share", lambda *_: 0.25)
    ours, theirs = engine.measure(job(checkpoint)), reference.measure(job(checkpoint))
    assert [each.workload for each in ours.answered] == [SHORT, LONG]
    for mine, other in zip(ours.answered, theirs.answered, strict=True):
        assert mine.token_ids == other.token_ids
        assert len(mine.token_ids) == mine.workload.new_tokens
        assert min(mine.first_token_seconds, mine.decode_tokens_per_second) > 0
        assert mine.peaks.host_bytes > ours.loaded.weights_bytes
        assert mine.peaks.device_bytes is None
        assert mine.others_share == other.others_share == 0.25
    assert len(theirs.answered[0].margins) == SHORT.new_tokens
    assert 0 <= min(theirs.answered[0].margins) < max(theirs.answered[0].margins)
    assert len(set(ours.answered[1].token_ids)) > 2  # or equal tokens would prove little


def test_a_stop_string_of_the_models_prompt_does_not_end_an_answer(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Prompter, "stops", ("a", "e", "i", "o", "u", " "))
    measured = engine.measure(job(checkpoint, workloads=(LONG,), repeats=1))
    assert len(measured.answered[0].token_ids) == LONG.new_tokens


def test_an_end_token_does_not_end_an_answer(checkpoint: Path, tmp_path: Path) -> None:
    """The second token that the model writes is made its end token."""
    written = engine.measure(job(checkpoint, workloads=(LONG,), repeats=1)).answered[0].token_ids
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": written[1]}))
    for measure in (engine.measure, reference.measure):
        assert measure(job(folder, workloads=(LONG,), repeats=1)).answered[0].token_ids == written


def test_other_weights_give_other_tokens(checkpoint: Path) -> None:
    ours, theirs = engine.measure(job(checkpoint)), reference.measure(job(None, seed=1))
    prompts = replace(job(None), seed=1)
    again = engine.measure(replace(prompts, weights=checkpoint))
    assert theirs.answered[1].token_ids != ours.answered[1].token_ids
    assert theirs.answered[1].token_ids != again.answered[1].token_ids


def test_the_last_turn_of_a_chat_reads_only_its_question(checkpoint: Path) -> None:
    chat = ChatWorkload(history_tokens=200, question_tokens=20, answer_tokens=4)
    chatted = engine.measure(job(checkpoint, workloads=(SHORT,), chat=chat)).chatted
    assert chatted is not None
    assert chatted.prompt_tokens == 220
    assert chatted.prompt_tokens - chatted.cached_prompt_tokens <= 21
    assert min(chatted.first_token_seconds, chatted.full_prefill_seconds) > 0


@pytest.mark.parametrize("preset", ["speed", "memory", "memory_extreme"])
def test_every_preset_can_be_measured(checkpoint: Path, preset: str) -> None:
    outcome = engine.measure(job(checkpoint, plan_for(preset), workloads=(SHORT,), repeats=1))
    assert outcome.answered[0].decode_tokens_per_second > 0
    assert 0 < outcome.read_bytes <= outcome.loaded.weights_bytes + 4 * SHAPE.hidden


def test_without_workloads_only_the_load_is_measured(checkpoint: Path) -> None:
    outcome = engine.measure(job(checkpoint, workloads=()))
    assert outcome.loaded.seconds > 0
    assert outcome.answered == ()


# Processes


def test_a_measurement_does_not_see_its_parents_memory(checkpoint: Path) -> None:
    ballast = torch.ones(2_000_000_000, dtype=torch.uint8)
    outcome = subprocess_runner.run_job(job(checkpoint, workloads=(SHORT,)), {})
    assert outcome.loaded.peaks.host_bytes < ballast.nbytes
    assert outcome.answered[0].peaks.host_bytes < ballast.nbytes


def test_an_error_crosses_processes_with_its_hint(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        subprocess_runner.run_job(job(tmp_path), {})
    assert caught.value.hint


def test_a_killed_measurement_ran_out_of_memory() -> None:
    with pytest.raises(DoesNotFitError):
        subprocess_runner._run("signal:raise_signal", (signal.SIGKILL,), {})


def test_a_crashed_measurement_says_its_last_line() -> None:
    with pytest.raises(LocalGemmaError, match="ZeroDivisionError") as caught:
        subprocess_runner._run("operator:truediv", (1, 0), {})
    assert any("Traceback" in note for note in caught.value.__notes__)


def test_the_environment_is_the_childs_own() -> None:
    assert subprocess_runner._run("os:getenv", ("LOCALGEMMA_PROBE",), {"LOCALGEMMA_PROBE": "here"}) == "here"


def test_a_measurement_ends_with_its_parent() -> None:
    script = (
        "from localgemma_cli.bench import subprocess_runner\nsubprocess_runner._run('time:sleep', (600,), {})"
    )
    parent = psutil.Popen([sys.executable, "-c", script])
    while not parent.children():
        time.sleep(0.05)
    (child,) = parent.children()
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([child], timeout=600) == ([child], [])


@pytest.mark.gpu
def test_random_weights_are_made_on_the_device() -> None:
    facts = resolve("2b", revision=None, offline=True).facts
    plan = make_plan(facts, "exact", probe("cuda"), Overrides(device="cuda"), load_presets())
    outcome = subprocess_runner.run_job(replace(job(None, plan), workloads=(Workload(64, 16),)), {})
    peak = outcome.answered[0].peaks.device_bytes
    assert peak is not None
    assert peak >= 2 * facts.architecture.parameters
    assert outcome.loaded.peaks.host_bytes < 2 * facts.architecture.parameters


@pytest.mark.gpu
def test_the_bandwidth_of_a_gpu_is_that_of_a_gpu() -> None:
    assert bandwidth.measure("cuda") > 50e9
