"""Several conversations by turns: each finds its prefix in a KV cache, and its own answers."""

from collections.abc import Sequence
from dataclasses import replace
from threading import Event as Cancel

import pytest
from support.models import DEMO
from support.serving import Serving

from localgemma_cli.backends.pytorch.backend import LocalBackend, load_backend
from localgemma_cli.conversation import Message
from localgemma_cli.events import Finished
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.render.progress import ignore_progress
from localgemma_cli.sampling import Sampling

SYSTEM = {"role": "system", "content": "You answer questions about localgemma in short sentences."}
QUESTIONS = ("What is the memory preset?", "How do I pipe a prompt into localgemma?", "Who are you?")


def test_interleaved_conversations_are_all_read_once(served: Serving) -> None:
    """Also what the model wrote, at a temperature at which its text could have other ids."""
    chats = [
        [SYSTEM, {"role": "user", "content": f"{name}: {QUESTIONS[0]}"}] for name in ("Ann", "Ben", "Eve")
    ]
    known = [0, 0, 0]
    for turn in range(3):
        for index, messages in enumerate(chats):
            answer = served.ask(messages=messages, temperature=1.5, seed=turn, max_tokens=20).json
            usage, text = answer["usage"], answer["choices"][0]["message"]["content"]
            assert usage["prompt_tokens_details"]["cached_tokens"] >= known[index]
            known[index] = usage["prompt_tokens"] + usage["completion_tokens"] - 1
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": QUESTIONS[turn]}]


def backend_of(kept: int, **overrides: object) -> LocalBackend:
    facts = resolve("demo", revision=None, offline=True).facts
    chosen = Overrides(device="cpu", dtype="float32", **overrides)  # type: ignore[arg-type]
    plan = make_plan(facts, "exact", probe("cpu"), chosen, load_presets())
    return load_backend(replace(plan, rows=kept), DEMO, ignore_progress)


def chat(backends: Sequence[LocalBackend], turns: int) -> tuple[list[tuple[int, ...] | None], list[int]]:
    """The ids of all answers of three conversations by turns, and how many tokens were cached."""
    chats = [[Message("user", f"{name} asks: {QUESTIONS[0]}")] for name in ("Ann", "Ben", "Eve")]
    ids, cached = list[tuple[int, ...] | None](), list[int]()
    for turn in range(turns):
        for messages, backend in zip(chats, backends, strict=True):
            sampling = Sampling(temperature=0, max_new_tokens=24)
            *_, finished = backend.stream(messages, sampling, Cancel())
            assert isinstance(finished, Finished)
            ids.append(finished.token_ids)
            cached.append(finished.usage.cached_prompt_tokens or 0)
            text = backend._prompter.tokenizer.decode(finished.token_ids or ())
            messages += [Message("assistant", text, finished.token_ids), Message("user", QUESTIONS[turn])]
    return ids, cached


@pytest.fixture(scope="module")
def alone() -> list[tuple[int, ...] | None]:
    return chat([backend_of(1) for _ in range(3)], 2)[0]


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_answers_are_those_of_conversations_alone(alone: list[tuple[int, ...] | None], kept: int) -> None:
    ids, cached = chat([backend_of(kept)] * 3, 2)
    assert ids == alone
    assert (min(cached[3:]) > 30) == (kept > 3)
