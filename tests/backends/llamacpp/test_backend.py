"""A real Gemma, gemma-3-270m in Q4_K_M, answers through llama.cpp as it does without this program."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event as Cancel
from typing import Any

import psutil
import pytest
from support.program import Program
from support.real_gguf import BareLlama
from support.schemas import validate

import localgemma_cli.backends.llamacpp.backend as llamacpp
from localgemma_cli.backends.llamacpp.backend import LlamaCppBackend, load_backend
from localgemma_cli.backends.llamacpp.completion import completion_request
from localgemma_cli.backends.llamacpp.parameters import server_parameters
from localgemma_cli.backends.llamacpp.process import LlamaProcess
from localgemma_cli.backends.llamacpp.scoring import score_next
from localgemma_cli.conversation import Message
from localgemma_cli.errors import ContextOverflowError, InterruptedAnswer, UsageError
from localgemma_cli.events import Delta, Event, Finished, LoadProgress, Reading
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import LoadPlan, Overrides, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.sampling import Sampling

PROMPT = "The meaning to life and the universe is"
STORY = "Once upon a time there was a king who lived in a castle by the sea. " * 40


def plan_for(path: Path, preset: str = "exact", context: int | None = 1024, **more: object) -> LoadPlan:
    facts = resolve(str(path), revision=None, offline=True).facts
    overrides = Overrides(device="cpu", context=context, **more)  # type: ignore[arg-type]
    return make_plan(facts, preset, probe("cpu"), overrides, load_presets())


@pytest.fixture(scope="module")
def backend(real_gguf: Path) -> LlamaCppBackend:
    return load_backend(plan_for(real_gguf), real_gguf, lambda _: None)


def worker_of(backend: LlamaCppBackend) -> psutil.Process:
    return psutil.Process(backend._process._process.pid)


def answer(
    backend: LlamaCppBackend, messages: list[Message], **more: object
) -> tuple[str, Finished, list[Reading]]:
    sampling = Sampling(**({"temperature": 0.0, "max_new_tokens": 8} | more))  # type: ignore[arg-type]
    return collect(backend, messages, sampling, Cancel())


def collect(
    backend: LlamaCppBackend,
    messages: list[Message],
    sampling: Sampling,
    cancel: Cancel,
    on: Callable[[Event], None] = lambda _: None,
) -> tuple[str, Finished, list[Reading]]:
    text, readings = "", []
    for event in backend.stream(messages, sampling, cancel):
        on(event)
        if isinstance(event, Delta):
            text += event.text
        elif isinstance(event, Reading):
            readings.append(event)
    assert isinstance(event, Finished)
    return text, event, readings


def test_a_greedy_answer_is_llama_cpps_own_token_for_token(
    backend: LlamaCppBackend, bare_llama: BareLlama
) -> None:
    text, finished, readings = answer(backend, [Message("user", PROMPT)], max_new_tokens=60)
    ids, expected = bare_llama.answer(PROMPT, 60)
    assert finished.token_ids == tuple(ids)
    assert text == expected
    assert (finished.finish_reason, finished.usage.completion_tokens) == ("length", 60)
    assert readings[-1].done == readings[-1].total == finished.usage.prompt_tokens


def test_a_second_turn_processes_only_what_is_new(real_gguf: Path) -> None:
    backend = load_backend(plan_for(real_gguf), real_gguf, lambda _: None, "gemma")
    first = [Message("user", STORY)]
    text, one, _ = answer(backend, first)
    turns = [*first, Message("assistant", text, token_ids=one.token_ids), Message("user", "And then?")]
    _, two, readings = answer(backend, turns)
    known = (one.usage.prompt_tokens or 0) + len(one.token_ids or ())
    assert known - 1 <= (two.usage.cached_prompt_tokens or 0) <= known  # the last one may not be computed yet
    assert readings[0].done == two.usage.cached_prompt_tokens


def test_going_back_past_the_sliding_window_processes_nothing_again(backend: LlamaCppBackend) -> None:
    """As /undo and /retry do; gemma-3-270m's window has 512 tokens."""
    story = [Message("user", STORY)]
    answer(backend, story)
    short = [Message("user", STORY[: len(STORY) // 8])]
    _, finished, _ = answer(backend, short)
    assert finished.usage.prompt_tokens is not None
    assert finished.usage.cached_prompt_tokens == finished.usage.prompt_tokens - 1


def test_an_answer_is_continued_from_its_token_ids(backend: LlamaCppBackend) -> None:
    asked = Message("user", PROMPT)
    answer(backend, [asked])  # sums differ in the last bits where a prompt is not in the cache yet
    whole, done, _ = answer(backend, [asked], max_new_tokens=16)
    half, part, _ = answer(backend, [asked], max_new_tokens=8)
    rest, more, _ = answer(backend, [asked, Message("assistant", half, token_ids=part.token_ids)])
    assert half + rest == whole
    assert (part.token_ids or ()) + (more.token_ids or ()) == done.token_ids
    assert backend.recognizes(Message("assistant", whole, token_ids=done.token_ids))


def test_cancelling_stops_within_a_token(backend: LlamaCppBackend) -> None:
    cancel = Cancel()

    def stop(event: Event) -> None:
        if isinstance(event, Delta):
            cancel.set()

    sampling = Sampling(temperature=0, max_new_tokens=500)
    text, finished, _ = collect(backend, [Message("user", PROMPT)], sampling, cancel, stop)
    assert finished.finish_reason == "interrupted"
    assert len(finished.token_ids or ()) <= 3
    assert text
    assert answer(backend, [Message("user", PROMPT)])[0]  # and the next answer works


def test_cancelling_stops_within_a_batch_of_the_prompt(backend: LlamaCppBackend) -> None:
    cancel = Cancel()
    long = [Message("user", f"A new story. {STORY[: len(STORY) * 9 // 10]}")]
    seen: list[Reading] = []

    def stop(event: Event) -> None:
        if isinstance(event, Reading):
            seen.append(event)
            cancel.set()

    _, finished, readings = collect(backend, long, Sampling(temperature=0), cancel, stop)
    assert (finished.finish_reason, finished.token_ids) == ("interrupted", ())
    assert readings[-1].done < readings[-1].total
    cancel = Cancel()
    cancel.set()
    with pytest.raises(InterruptedAnswer):
        next(backend.stream(long, Sampling(), cancel))


def test_characters_of_several_byte_tokens_keep_their_ids(
    backend: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grammar makes the model write a rare letter, which has no token of its own."""

    def request(*arguments: Any) -> dict[str, object]:
        return {**completion_request(*arguments), "grammar": 'root ::= "𒐫é𒐫"'}

    monkeypatch.setattr(llamacpp, "completion_request", request)
    asked = [Message("user", PROMPT)]
    text, finished, _ = answer(backend, asked, max_new_tokens=30)
    ids = finished.token_ids or ()
    assert (text, finished.finish_reason) == ("𒐫é𒐫", "stop")
    assert len(ids) >= 8, "four bytes per letter"
    assert backend.recognizes(Message("assistant", text, token_ids=ids))


def test_log_probabilities_are_those_of_the_model_itself(
    backend: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the parts of a rare letter, which llama.cpp reports without theirs."""
    asked = [Message("user", PROMPT)]
    warm = {"temperature": 1.5, "min_p": 0.1, "seed": 3, "max_new_tokens": 6}
    _, greedy, _ = answer(backend, asked, max_new_tokens=6, logprobs=3)
    text, sampled, _ = answer(backend, asked, logprobs=0, **warm)
    assert all(each.top_logprobs[0].logprob == each.logprob for each in greedy.logprobs or ())
    assert [len(each.top_logprobs) for each in greedy.logprobs or ()] == [3] * 6
    assert [each.id for each in sampled.logprobs or ()] == list(sampled.token_ids or ())
    assert text == "".join(each.token for each in sampled.logprobs or ())
    with_end = sum(each.logprob for each in sampled.logprobs or ())
    assert with_end == pytest.approx(scored_without_end(backend, asked, sampled), abs=0.05)

    def request(*arguments: Any) -> dict[str, object]:
        return {**completion_request(*arguments), "grammar": 'root ::= "𒐫é𒐫"'}

    monkeypatch.setattr(llamacpp, "completion_request", request)
    text, rare, _ = answer(backend, asked, max_new_tokens=30, logprobs=2)
    entries = rare.logprobs or ()
    assert text.encode() == b"".join(bytes(each.bytes or ()) for each in entries)
    assert [each.id for each in entries] == list(rare.token_ids or ())
    assert sum(each.logprob for each in entries) == pytest.approx(
        scored_without_end(backend, asked, rare), abs=0.05
    )


def scored_without_end(backend: LlamaCppBackend, asked: list[Message], finished: Finished) -> float:
    """The log-probability of the answer's tokens, each as the only one that can be sampled."""
    ids, known = backend._prompter.encode(asked), list(finished.token_ids or ())
    return sum(
        score_next(backend._process, backend._prompter, [*ids, *known[:at]], token).logprob
        for at, token in enumerate(known)
    )


def test_a_seed_repeats_an_answer_and_the_filters_apply(backend: LlamaCppBackend) -> None:
    asked = [Message("user", PROMPT)]
    answer(backend, asked)  # sums differ in the last bits where a prompt is not in the cache yet
    warm = {"temperature": 1.5, "max_new_tokens": 16}
    one, two, three = (answer(backend, asked, seed=seed, **warm)[0] for seed in (2**40 + 7, 2**40 + 7, 8))
    assert one == two != three
    greedy = answer(backend, asked, max_new_tokens=16)[0]
    for only in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert answer(backend, asked, **warm, **only)[0] == greedy
    plain, penalized = (
        answer(backend, asked, max_new_tokens=60, repetition_penalty=penalty)[0].split()
        for penalty in (1.0, 1.5)
    )
    assert len(set(penalized)) / len(penalized) > len(set(plain)) / len(plain)


def test_a_prompt_longer_than_the_context_is_refused(backend: LlamaCppBackend) -> None:
    with pytest.raises(ContextOverflowError):
        answer(backend, [Message("user", STORY * 3)])


def test_the_last_token_of_the_context_is_used(real_gguf: Path) -> None:
    small = load_backend(plan_for(real_gguf, "memory", 64), real_gguf, lambda _: None)
    text, finished, _ = collect(small, [Message("user", PROMPT)], Sampling(temperature=0), Cancel())
    assert text.startswith(" a ")
    assert finished.finish_reason == "length"
    assert (finished.usage.prompt_tokens or 0) + (finished.usage.completion_tokens or 0) == 64


@pytest.mark.parametrize(
    ("option", "more"),
    [
        ("--quantization", {"quantization": "int4"}),
        ("--dtype", {"dtype": "float32"}),
        ("--attention", {"attention": "eager"}),
        ("--compile", {"compile": True}),
        ("--assistant", {"assistant": "lookup"}),
    ],
)
def test_options_that_the_file_decides_are_refused(
    option: str, more: dict[str, object], real_gguf: Path
) -> None:
    with pytest.raises(UsageError, match=f"{option} cannot be used with a GGUF file"):
        plan_for(real_gguf, **more)


def test_the_plan_names_the_files_type_and_size(real_gguf: Path) -> None:
    plan, small = plan_for(real_gguf, context=8192), plan_for(real_gguf, "memory", 8192)
    shown = plan.to_dict()
    assert shown["model"]["stored"] == "GGUF Q4_K_M"  # type: ignore[index]
    assert real_gguf.stat().st_size - 10_000_000 < plan.memory.weights_bytes < real_gguf.stat().st_size
    # 3 full layers, and 15 that keep a window of 512, a batch of 256 and three checkpoints
    kept = 3 * 8192 + 15 * (512 + 256 + 3 * 512)
    assert plan.memory.kv_cache_bytes == kept * 256 * 2 * 2
    assert small.memory.kv_cache_bytes == kept * 256 * 2 * 34 // 32
    assert plan_for(real_gguf, context=2048).memory.kv_cache_bytes == 18 * 2048 * 256 * 2 * 2
    assert (plan.cache, small.cache, plan.assistant) == ("f16", "q8_0", "none")
    validate(shown, "plan")


WATCHED = """
import os, sys
from localgemma_cli.cli import run
from localgemma_cli.environment import standard_streams
run(sys.argv[1:], standard_streams())
os.write(2, f"loaded: {sorted({'torch', 'transformers'} & set(sys.modules))}".encode())
"""


def test_the_program_answers_in_json_without_torch(
    program: Program, real_gguf: Path, bare_llama: BareLlama
) -> None:
    greedy = ("--temperature", "0", "--max-new-tokens", "20", "--context", "512")
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "-m", str(real_gguf), "--json", *greedy, PROMPT],
        capture_output=True,
        text=True,
        env=program.env,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    validate(found, "answer")
    assert found["backend"] == "local"
    assert found["response"] == bare_llama.answer(PROMPT, 20)[1]
    assert "loaded: []" in done.stderr, done.stderr


def test_no_other_process_can_reach_the_listener(backend: LlamaCppBackend) -> None:
    """Its Unix socket is gone as soon as the model is loaded, and no port is open."""
    worker = worker_of(backend)
    assert not worker.net_connections("inet")
    sockets = [each.laddr for each in worker.net_connections("unix") if each.laddr]
    assert len(sockets) == 1
    assert not Path(str(sockets[0])).exists()


def test_a_process_that_ends_within_an_answer_costs_only_its_rest(real_gguf: Path) -> None:
    backend = load_backend(plan_for(real_gguf), real_gguf, lambda _: None)
    asked, first = [Message("user", PROMPT)], worker_of(backend)

    def kill(event: Event) -> None:
        if isinstance(event, Delta):
            first.kill()

    text, finished, _ = collect(backend, asked, Sampling(temperature=0, max_new_tokens=500), Cancel(), kill)
    assert finished.finish_reason == "error"
    assert finished.error is not None
    assert "llama.cpp stopped unexpectedly (SIGKILL). The answer is incomplete." in finished.error.message
    assert text
    assert finished.token_ids
    cancel = Cancel()
    cancel.set()
    with pytest.raises(InterruptedAnswer):  # also while it is loaded again
        collect(backend, asked, Sampling(), cancel)
    again = answer(backend, asked, max_new_tokens=len(finished.token_ids))[0]
    assert again == text, "it is loaded again"
    second = worker_of(backend)
    del backend
    second.wait(300)


def test_a_stopped_load_ends_the_process_at_once(real_gguf: Path) -> None:
    def stop(_: LoadProgress) -> None:
        raise KeyboardInterrupt

    process = LlamaProcess(server_parameters(plan_for(real_gguf), real_gguf))
    with pytest.raises(KeyboardInterrupt):
        process.load(stop)
    assert process.has_ended
    assert process._process.returncode == -signal.SIGKILL, "it was not waited for"


def test_options_of_config_toml_that_the_file_decides_are_ignored(program: Program, real_gguf: Path) -> None:
    (program.config / "config.toml").write_text('dtype = "float32"\n')
    env = program.env | {"LOCALGEMMA_ATTENTION": "eager"}
    command = [sys.executable, "-m", "localgemma_cli", "plan", "--device", "cpu", "-m", str(real_gguf)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    reasons = json.loads(done.stdout)["reasons"]
    assert {f"{name} has no effect on a GGUF file" for name in ("dtype", "attention")} <= set(reasons)
    done = subprocess.run(
        [*command, "--dtype", "float32"], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 2
    assert "--dtype cannot be used with a GGUF file" in done.stderr
