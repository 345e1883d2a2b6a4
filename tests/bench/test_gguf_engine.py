"""A GGUF file as a model of `localgemma bench`: measured through the engine that a chat uses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoints import tiny
from support.gguf_models import Q8_0, write_gguf
from support.program import Program

from localgemma_cli.bench import gguf_engine, llamacpp, subprocess_runner
from localgemma_cli.bench.job import ChatWorkload, Job, Workload
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets

pytest.importorskip("xllamacpp")
SHORT, LONG = Workload(10, 6), Workload(40, 12)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny("gemma2"), Q8_0)
    return path


def job(path: Path, preset: str = "exact", **changes: object) -> Job:
    facts = resolve(str(path), revision=None, offline=True).facts
    plan = make_plan(facts, preset, probe("cpu"), Overrides(device="cpu", context=256), load_presets())
    return replace(Job("localgemma", plan, path, path, (SHORT, LONG), repeats=2), **changes)


def test_answers_have_the_asked_length_and_a_chat_reads_only_what_is_new(path: Path) -> None:
    measured = gguf_engine.measure(job(path, chat=ChatWorkload(200, 20, 4)))
    for each in measured.answered:
        assert 0 <= each.workload.new_tokens - len(each.token_ids) <= 3  # an unfinished character's bytes
        assert min(each.first_token_seconds, each.decode_tokens_per_second) > 0
    assert measured.chatted is not None
    assert 200 <= measured.chatted.prompt_tokens <= 220
    assert measured.chatted.prompt_tokens - measured.chatted.cached_prompt_tokens <= 21
    assert measured.read_bytes == measured.loaded.weights_bytes == path.stat().st_size
    assert measured.stream_seconds_per_token is not None


@pytest.mark.parametrize("measure", [gguf_engine.measure, llamacpp.measure])
def test_an_end_token_does_not_end_an_answer(path: Path, tmp_path: Path, measure: Callable) -> None:
    """The second token that the model writes is made its end token."""
    written = gguf_engine.measure(job(path)).answered[1].token_ids
    stopping = tmp_path / "stopping.gguf"
    write_gguf(stopping, tiny("gemma2"), Q8_0, lambda writer: writer.add_eot_token_id(written[1]))
    rates = [each.decode_tokens_per_second for each in measure(job(stopping)).answered]
    assert min(rates) > 0  # an answer that ends early is an AssertionError


def test_a_process_of_its_own_measures_the_file(path: Path) -> None:
    measured = subprocess_runner.run_job(job(path, "memory", workloads=(SHORT,)), {})
    assert measured.loaded.weights_bytes == path.stat().st_size
    assert measured.answered[0].decode_tokens_per_second > 0


@pytest.mark.parametrize("words", [["--reference"], ["--load-format", "dummy"]])
def test_what_a_gguf_file_lacks_is_a_usage_error(program: Program, path: Path, words: list[str]) -> None:
    done = program("bench", "-m", str(path), "--device", "cpu", "--context", "256", *words)
    assert done.returncode == 2
    assert f"{words[0]} cannot be used with a GGUF file" in done.stderr
