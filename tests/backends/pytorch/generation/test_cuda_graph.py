"""Recorded and compiled steps, on the CPU: a recording is played back by calling what was recorded."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event as Cancel

import pytest
import torch
from support.decoding import generate
from support.models import demo_fp32, demo_tokenizer
from support.program import Program
from transformers.cache_utils import Cache

from localgemma_cli.backends.pytorch.generation import cuda_graph as steps
from localgemma_cli.backends.pytorch.generation.cuda_graph import BackgroundCompiler, RecordedStep, Run, Step
from localgemma_cli.backends.pytorch.generation.decode import forward, make_step, prefill
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.generation.sampler import Sampler
from localgemma_cli.sampling import Sampling

CONTEXT = 1024


def eager(token: torch.Tensor, cache: Cache) -> torch.Tensor:
    return forward(demo_fp32(), token, cache)


class Tape:
    """A recorder that counts; as under a graph, every run gives its answer in the same place."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, run: Run, warm_up: Callable[[], None]) -> Run:
        warm_up()
        self.recordings += 1
        output = torch.empty(1, demo_fp32().config.vocab_size)

        def replay() -> torch.Tensor:
            self.replays += 1
            return output.copy_(run())

        return replay


def static(context: int = CONTEXT) -> KVCache:
    return KVCache(demo_fp32().config, "static", context)


def answer(step: Step, kv: KVCache, prompt: list[int], count: int, lag: bool = False) -> list[int]:
    return list(stream(step, kv, prompt, count, lag))


def stream(step: Step, kv: KVCache, prompt: list[int], count: int, lag: bool = False) -> Iterator[int]:
    model = demo_fp32()
    kv.reuse(prompt)
    sampler = Sampler(Sampling(temperature=0), model.device)
    return generate(model, step, kv, prompt, sampler, frozenset(), count, Cancel(), lag=lag)


def expected(prompt: list[int], count: int) -> list[int]:
    return answer(eager, KVCache(demo_fp32().config, "full", CONTEXT), prompt, count)


def words(count: int, seed: int) -> list[int]:
    return torch.randint(108, 1000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("lag", [False, True], ids=["read at once", "read late"])
def test_a_recording_serves_one_cache_and_is_made_anew_for_a_longer_one(lag: bool) -> None:
    tape, kv, prompt = Tape(), static(), words(505, 1)
    step = RecordedStep(eager, tape)
    assert answer(step, kv, prompt, 6, lag) == expected(prompt, 6)
    assert tape.recordings == 1
    edited = [*prompt[:300], *words(150, 2)]
    assert answer(step, kv, edited, 6, lag) == expected(edited, 6)
    assert tape.recordings == 1  # rolled back in place
    assert answer(step, kv, prompt, 16, lag) == expected(prompt, 16)
    assert kv.cache.layers[0].max_cache_len == CONTEXT
    assert (tape.recordings, tape.replays) == (2, 5 + 5 + 15)


def test_recording_leaves_the_cache_as_a_single_step_does() -> None:
    recorded, plain = static(), static()
    token = torch.tensor([[300]])
    with torch.inference_mode():
        for kv in (recorded, plain):
            prefill(demo_fp32(), kv, words(40, 3), torch.device("cpu"), Cancel())
        logits = RecordedStep(eager, Tape())(token, recorded.cache)
        torch.testing.assert_close(logits, eager(token, plain.cache), rtol=0, atol=0)
        for ours, theirs in zip(recorded.cache.layers, plain.cache.layers, strict=True):
            assert int(ours.cumulative_length) == int(theirs.cumulative_length) == 41
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)


def test_a_replaced_cache_is_let_go_of() -> None:
    kv = static()
    step = RecordedStep(eager, lambda run, warm_up: lambda: torch.zeros(1, 1100))
    answer(step, kv, words(20, 4), 3)
    assert step._recording is not None
    kv.reset()
    assert step._recording.cache() is None


def test_what_cannot_be_recorded_runs_as_it_is_with_one_word_about_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuses(run: Run, warm_up: Callable[[], None]) -> Run:
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    prompt = words(30, 5)
    step = RecordedStep(eager, refuses)
    assert answer(step, static(), prompt, 8) == expected(prompt, 8)
    assert answer(step, static(), prompt, 8) == expected(prompt, 8)
    assert [record.message.count("\n") for record in caplog.records] == [0]
    assert "operation not permitted" in caplog.text


def test_an_answer_streams_uncompiled_until_the_compiled_step_is_ready() -> None:
    go, compiled, tape = Cancel(), [], Tape()

    def slow(step: Step) -> Step:
        assert go.wait(600)

        def run(token: torch.Tensor, cache: Cache) -> torch.Tensor:
            compiled.append(cache)
            return step(token, cache)

        return run

    compiler = BackgroundCompiler(eager, slow)
    step = RecordedStep(eager, tape, compiler)
    prompt, kv = words(30, 6), static()
    tokens = stream(step, kv, prompt, 20)
    first = [next(tokens) for _ in range(8)]
    assert compiler.busy
    assert tape.recordings == 1
    other = static()
    assert answer(step, other, prompt, 4) == expected(prompt, 4)
    assert tape.recordings == 1  # nothing is recorded beside a compiler
    assert not compiled
    go.set()
    step.wait()
    assert [cache for cache in compiled if cache in (kv.cache, other.cache)] == []  # only its own scratch
    assert [*first, *tokens] == expected(prompt, 20)
    assert tape.recordings == 2
    assert kv.cache in compiled


@pytest.mark.parametrize("late", [False, True], ids=["while compiling", "while answering"])
def test_a_step_that_does_not_compile_costs_a_word_and_no_answer(
    late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def broken(step: Step) -> Step:
        def run(token: torch.Tensor, cache: Cache) -> torch.Tensor:
            calls.append(1)
            if late and len(calls) == 1:
                return step(token, cache)
            cache.layers[0].cumulative_length.add_(1)  # as far as it got
            raise RuntimeError("no C++ compiler")

        return run

    step = RecordedStep(eager, Tape(), BackgroundCompiler(eager, broken))
    prompt, kv = words(30, 7), static()
    assert answer(step, kv, prompt, 3) == expected(prompt, 3)
    step.wait()
    assert answer(step, kv, prompt, 12) == expected(prompt, 12)
    assert answer(step, static(), prompt, 12) == expected(prompt, 12)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "continuing without it: no C++ compiler" in caplog.text


def test_code_is_traced_once_per_length_whatever_the_cache() -> None:
    """A cache that was moved, and one that is new: the same code. Only the kernels are left out here."""
    traced = []

    def traces(step: Step) -> Step:
        def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
            traced.append(1)
            return graph.forward

        return torch.compile(step, backend=backend, fullgraph=True, dynamic=False)

    prompt, kv = words(9, 9), static()
    plain = make_step(demo_fp32(), "none")
    step = RecordedStep(plain, steps.unrecorded, BackgroundCompiler(plain, traces))
    answer(step, kv, prompt, 2)
    step.wait()
    assert answer(step, kv, prompt, 8) == expected(prompt, 8)
    assert step._recording is not None
    assert step._recording.step is not plain
    with torch.inference_mode():
        kv._resize(512)
    assert answer(step, kv, prompt, 8) == expected(prompt, 8)
    assert answer(step, static(), prompt, 8) == expected(prompt, 8)
    assert traced == [1]


@pytest.mark.slow
def test_compiled_steps_give_the_same_tokens_and_are_kept_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    prompt, kv = demo_tokenizer().encode("What can you do?"), static()
    step = make_step(demo_fp32(), "default")
    assert isinstance(step, RecordedStep)
    assert answer(step, kv, prompt, 2) == expected(prompt, 2)
    step.wait()
    assert answer(step, kv, prompt, 12) == expected(prompt, 12)
    assert step._recording is not None
    assert step._recording.step is not step._plain
    assert any((tmp_path / "cache" / "compiled").iterdir())


def test_leaving_does_not_wait_for_the_compiler(program: Program) -> None:
    done = program("--model", "demo", "--compile", "--max-new-tokens", "40", "What can you do?")
    assert done.returncode == 0
    assert done.stdout.strip()
    assert "terminate" not in done.stderr


def test_a_model_on_several_devices_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        demo_fp32(), "hf_device_map", {"model.layers.0": 0, "model.layers.1": 1}, raising=False
    )
    assert not isinstance(make_step(demo_fp32(), "graph"), RecordedStep)
    monkeypatch.setattr(demo_fp32(), "hf_device_map", {"": "cpu"})
    assert isinstance(make_step(demo_fp32(), "graph"), RecordedStep)


def test_the_compiler_lets_the_answer_have_the_interpreter_often() -> None:
    import sys

    seen, before = [], sys.getswitchinterval()

    def watch(step: Step) -> Step:
        seen.append(sys.getswitchinterval())
        return step

    compiler = BackgroundCompiler(eager, watch)
    kv = static()
    answer(eager, kv, words(5, 8), 1)
    compiler.start(kv.cache)
    compiler.wait()
    assert seen[0] == pytest.approx(steps._SWITCH_INTERVAL)
    assert sys.getswitchinterval() == pytest.approx(before)
