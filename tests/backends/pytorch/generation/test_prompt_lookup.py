"""Guessed tokens: the same answer, in fewer forwards, and silence where guessing does not pay."""

from threading import Event as Cancel

import pytest
import torch
from support.decoding import generate
from support.models import demo_fp32, demo_tokenizer

from localgemma_cli.backends.pytorch.generation import decode as decoding
from localgemma_cli.backends.pytorch.generation.decode import make_step
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.generation.prompt_lookup import (
    LONGEST,
    NGRAM,
    Guesses,
    Payoff,
    PromptLookup,
)
from localgemma_cli.backends.pytorch.generation.sampler import Sampler
from localgemma_cli.sampling import Sampling

GREEDY = Sampling(temperature=0)


def answer(
    prompt: list[int], sampling: Sampling, lookup: Guesses | None, kind: str = "full", count: int = 80
) -> tuple[list[int], KVCache]:
    model = demo_fp32()
    kv = KVCache(model.config, kind, 1024)
    tokens = generate(
        model,
        make_step(model, "none"),
        kv,
        prompt,
        Sampler(sampling, model.device),
        frozenset(),
        count,
        Cancel(),
        lookup,
    )
    return list(tokens), kv


def prompts() -> list[list[int]]:
    tokenizer = demo_tokenizer()
    texts = [
        "The memory preset loads the weights in 4 bits. " * 6 + "The memory preset",
        "one two three four five six " * 12,
        "How do I get JSON out of localgemma in a script?",
    ]
    return [[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)] for text in texts]


@pytest.mark.parametrize("kind", ["full", "static"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, seed=4)], ids=["greedy", "seeded"])
@pytest.mark.parametrize("number", range(3))
def test_guessing_does_not_change_a_single_token(number: int, sampling: Sampling, kind: str) -> None:
    prompt = prompts()[number]
    assert answer(prompt, sampling, PromptLookup(), kind)[0] == answer(prompt, sampling, None, kind)[0]


def test_a_text_that_repeats_takes_fewer_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = decoding.forward

    def counted(*arguments: object) -> torch.Tensor:
        calls.append(1)
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "forward", counted)
    prompt = [2, *([300, 301, 302, 303, 304, 305, 306, 307] * 20)]
    tokens, _ = answer(prompt, GREEDY, None, count=60)
    without = len(calls)
    calls.clear()
    guessed, _ = answer([*prompt, *tokens], GREEDY, PromptLookup(), count=60)
    assert len(guessed) == 60
    assert len(calls) < without


def test_the_cache_holds_what_was_said_and_no_wrong_guess() -> None:
    prompt = prompts()[0]
    tokens, kv = answer(prompt, GREEDY, PromptLookup(), count=40)
    said = [*prompt, *tokens]
    kept = kv.reuse([*said, 5])
    assert kept >= len(said) - 1
    assert kv.tokens == said[:kept]


def test_an_answer_is_never_longer_than_asked() -> None:
    for count in (1, 2, 9):
        assert len(answer(prompts()[1], GREEDY, PromptLookup(), count=count)[0]) == count


def guessing() -> PromptLookup:
    """One that has seen what an answer takes without guesses, by a clock that then stands."""
    clock = Clock()
    lookup = PromptLookup(clock)
    for length in range(4):
        lookup.propose(list(range(length)))
        clock.now += 1
    return lookup


def test_a_guess_is_what_followed_the_same_tokens_last() -> None:
    lookup = guessing()
    history = [1, 2, 3, 50, 51, 9, 1, 2, 3, 60, 61, 62, 63, 64, 65, 66, 67, 68, 1, 2, 3]
    assert lookup.propose(history) == [60, 61, 62, 63, 64, 65, 66][:LONGEST]
    assert lookup.propose([*history, 60]) == [61, 62, 63, 64, 65, 66, 67]
    assert guessing().propose(list(range(50))) == []
    assert NGRAM == 3


@pytest.mark.parametrize(("check", "right", "pays"), [(1.2, 1, True), (4.5, 3, False), (4.5, 7, True)])
def test_looking_up_stops_where_it_takes_longer_than_it_saves(check: float, right: int, pays: bool) -> None:
    """A check of eight rows costs a processor up to four times a step, however many of them are right."""
    clock = Clock()
    lookup, length, guesses = PromptLookup(clock), 30, []
    while length < 400:
        guesses.append(bool(lookup.propose([1, 2, 3] * (length // 3) + [1, 2, 3][: length % 3])))
        clock.now += check if guesses[-1] else 1
        length += 1 + right if guesses[-1] else 1
    assert guesses[:3] == [False] * 3
    assert all(guesses[3:11])
    assert all(guesses[11:]) == pays
    assert any(guesses[12:])  # it is tried again after a pause


def test_rounds_without_a_guess_are_no_guessed_ones() -> None:
    clock = Clock()
    payoff = Payoff(clock)
    payoff.begin()
    able = [length % 10 == 0 for length in range(500)]
    asked = []
    for length, each in enumerate(able):
        asked.append(payoff.next_round(length, able=each))
        clock.now += 4 if asked[-1] else 1
    assert sum(asked) <= 8 * 4


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def rounds(payoff: Payoff, clock: Clock, tokens: int, plain: float, guessed: float, right: int) -> list[bool]:
    """An answer of `tokens`: a round takes `plain` seconds, or `guessed` and gives `right` tokens more."""
    payoff.begin()
    length, guesses = 10, []
    while length < 10 + tokens:
        guesses.append(payoff.next_round(length))
        clock.now += guessed if guesses[-1] else plain
        length += 1 + right if guesses[-1] else 1
    return guesses


def test_guesses_that_save_time_go_on_and_are_measured_against_each_answer() -> None:
    clock = Clock()
    payoff = Payoff(clock)
    for _ in range(2):
        guesses = rounds(payoff, clock, 200, plain=1.0, guessed=1.9, right=1)
        assert guesses[:3] == [False] * 3
        assert all(guesses[3:])


def test_guesses_that_cost_time_stop_though_most_of_them_are_right() -> None:
    clock = Clock()
    guesses = rounds(Payoff(clock), clock, 2000, plain=1.0, guessed=4.5, right=3)
    assert guesses[3:11] == [True] * 8
    assert not any(guesses[11:75])
    assert sum(guesses) <= 8 * 6  # each trial after a pause twice as long
    assert guesses[75:83] == [True] * 8


def test_a_stall_of_the_reader_is_not_taken_for_the_models_time() -> None:
    clock = Clock()
    payoff = Payoff(clock)
    rounds(payoff, clock, 60, plain=1.0, guessed=1.5, right=2)
    clock.now += 50  # in the round that is open
    for length in range(73, 100, 3):
        assert payoff.next_round(length)
        clock.now += 1.5


def test_nothing_is_learnt_from_the_time_between_two_answers() -> None:
    clock = Clock()
    payoff = Payoff(clock)
    first = rounds(payoff, clock, 3 + 7 * 4, plain=1.0, guessed=4.5, right=3)
    clock.now += 1000  # the user thinks, and starts anew with a shorter history
    second = rounds(payoff, clock, 40, plain=1.0, guessed=4.5, right=3)
    assert sum(first) == 7  # the last of them was never seen to end
    assert sum(second) == 2


def test_what_is_done_once_does_not_count() -> None:
    clock = Clock()
    payoff = Payoff(clock)
    payoff.begin()
    for length in range(200):
        if payoff.next_round(length):
            clock.now += 30
            payoff.restart_round()
        clock.now += 1 if length < 3 else 0.5
    assert payoff.next_round(200)


def test_speed_that_changes_is_noticed_after_the_pause() -> None:
    clock = Clock()
    payoff = Payoff(clock)
    assert not rounds(payoff, clock, 30, plain=1.0, guessed=9.0, right=1)[-1]
    assert rounds(payoff, clock, 300, plain=1.0, guessed=1.2, right=1)[-1]
