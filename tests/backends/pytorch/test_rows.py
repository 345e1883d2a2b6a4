"""Several answers at a time: the same tokens as one after the other."""

from collections.abc import Iterable
from dataclasses import replace
from threading import Event as Cancel

import pytest
from support.models import DEMO

from localgemma_cli.backends.many import Request, stream_all
from localgemma_cli.backends.pytorch.backend import LocalBackend, load_backend
from localgemma_cli.backends.pytorch.kernels.library import variants
from localgemma_cli.constraint import Choices, Regex
from localgemma_cli.conversation import Message
from localgemma_cli.errors import ContextOverflowError
from localgemma_cli.events import Delta, Event, Finished
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.planning.rows import plan_rows
from localgemma_cli.render.progress import ignore_progress
from localgemma_cli.sampling import Sampling

pytestmark = pytest.mark.skipif(not variants(), reason="needs the C extension for this processor")
QUESTIONS = [
    "Hello! My name is Ada.",
    "What does the memory preset do? " * 8,
    "How do I pipe a prompt into localgemma?",
    "Hi",
    "Which preset is the smallest?",
    "What happens when the context is full? " * 30,
    "How do I get JSON?",
    "Write a list of the files in a folder, and of what each of them is for. " * 12,
    "What should I do about a gated model?",
    "What is my name?",
]
LIMITS = (40, 3, 25, 60, 1, 30, 17, 2, 33, 12)


def backend_of(preset: str, **overrides: object) -> LocalBackend:
    facts = resolve("demo", revision=None, offline=True).facts
    plan = make_plan(facts, preset, probe("cpu"), Overrides(device="cpu", **overrides), load_presets())
    return load_backend(replace(plan_rows(plan), rows=4), DEMO, ignore_progress)


@pytest.fixture(scope="module")
def exact() -> LocalBackend:
    return backend_of("exact")


def greedy(question: str, limit: int = 20) -> Request:
    return [Message("user", question)], Sampling(temperature=0, max_new_tokens=limit)


def finished(events: Iterable[tuple[int, Event]]) -> dict[int, Finished]:
    return {index: event for index, event in events if isinstance(event, Finished)}


def one_by_one(backend: LocalBackend, requests: Iterable[Request]) -> list[Finished]:
    answers = (list(backend.stream(*request, Cancel())) for request in requests)
    return [events[-1] for events in answers if isinstance(events[-1], Finished)]


def essence(answer: Finished) -> object:
    return answer.token_ids, answer.finish_reason, answer.usage.prompt_tokens, answer.usage.completion_tokens


@pytest.mark.parametrize("preset", ["exact", "memory", "speed"])
def test_answers_of_different_lengths_are_those_of_one_at_a_time(preset: str) -> None:
    """Ten questions in four places: places are taken again; answers end at a limit or at a stop token."""
    backend = backend_of(preset)
    assert backend.rows == 4
    requests = [greedy(*each) for each in zip(QUESTIONS, LIMITS, strict=True)]
    expected = one_by_one(backend, requests)
    got = finished(stream_all(backend, iter(requests), Cancel()))
    assert [essence(got[index]) for index in range(10)] == [essence(each) for each in expected]
    assert {each.finish_reason for each in expected} == {"stop", "length"}


def test_sampled_answers_with_seeds_are_those_of_one_at_a_time(exact: LocalBackend) -> None:
    requests = [
        ([Message("user", question)], Sampling(seed=seed, repetition_penalty=1.1, max_new_tokens=20))
        for seed, question in enumerate(QUESTIONS[:6])
    ]
    expected = one_by_one(exact, requests)
    got = finished(stream_all(exact, requests, Cancel()))
    assert [essence(got[index]) for index in range(6)] == [essence(each) for each in expected]


def test_constrained_answers_and_log_probabilities_are_those_of_one_at_a_time(exact: LocalBackend) -> None:
    sampling = Sampling(temperature=0, max_new_tokens=30)
    digits, choices = (
        replace(sampling, constraint=Regex("[0-9]{6}")),
        replace(sampling, constraint=Choices(("yes", "no"))),
    )
    scored = replace(sampling, logprobs=2)
    requests = [([Message("user", "How many?")], each) for each in (digits, scored, choices, digits, scored)]
    expected = one_by_one(exact, requests)
    got = finished(stream_all(exact, requests, Cancel()))
    for index, right in enumerate(expected):
        assert essence(got[index]) == essence(right)
        assert got[index].logprobs == right.logprobs


def test_a_request_that_fails_stops_no_other(exact: LocalBackend) -> None:
    requests = [greedy("Hi"), greedy("word " * 20_000), greedy("What is my name?")]
    got = finished(stream_all(exact, requests, Cancel()))
    assert isinstance(got[1].error, ContextOverflowError)
    expected = one_by_one(exact, [requests[0], requests[2]])
    assert [essence(got[0]), essence(got[2])] == [essence(each) for each in expected]


def test_cancel_ends_the_answers_that_have_begun_and_begins_no_other(exact: LocalBackend) -> None:
    cancel, kept = Cancel(), {}
    for index, event in stream_all(exact, [greedy(each, 200) for each in QUESTIONS], cancel):
        if isinstance(event, Delta):
            cancel.set()
        kept[index] = event
    assert all(isinstance(event, Finished) for event in kept.values())
    assert 0 in kept
    assert len(kept) <= 4
    assert essence(one_by_one(exact, [greedy("Hi")])[0])  # the caches are usable


def test_closing_the_events_stops_all(exact: LocalBackend) -> None:
    events = iter(stream_all(exact, [greedy(each, 200) for each in QUESTIONS], Cancel()))
    next(event for _, event in events if isinstance(event, Delta))
    events.close()
    requests = [greedy(each) for each in QUESTIONS[:5]]
    expected = one_by_one(exact, requests)
    got = finished(stream_all(exact, requests, Cancel()))
    assert [essence(got[index]) for index in range(5)] == [essence(each) for each in expected]


def test_answers_go_on_while_the_next_request_is_not_ready(exact: LocalBackend) -> None:
    """The second request comes only after the first answer is complete."""
    seen: list[Event] = []

    def requests() -> Iterable[Request | None]:
        yield greedy("Hi")
        while not any(isinstance(event, Finished) for event in seen):
            yield None
        yield greedy("What is my name?")

    for _, event in stream_all(exact, requests(), Cancel()):
        seen.append(event)
    assert sum(isinstance(event, Finished) for event in seen) == 2


def test_a_common_prefix_is_computed_once(exact: LocalBackend) -> None:
    system = "You answer questions about a program. " * 20
    requests = [
        ([Message("user", f"{system}{question}")], Sampling(temperature=0, max_new_tokens=8))
        for question in ("Is it fast?", "Who wrote it?", "Where does it run?", "Why?", "How?")
    ]
    backend = backend_of("exact")
    got = finished(stream_all(backend, requests, Cancel()))
    cached = [got[index].usage.cached_prompt_tokens for index in range(5)]
    assert cached[0] == 0
    assert min(cached[1:]) > 100
    fresh = [one_by_one(backend_of("exact"), [request])[0] for request in requests[:2]]
    assert [essence(got[index]) for index in range(2)] == [essence(each) for each in fresh]


def test_one_row_where_the_step_cannot_have_more() -> None:
    assert backend_of("exact", dtype="float32").rows == 1
