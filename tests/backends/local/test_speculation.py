"""Guessed tokens: the same answer, in fewer forwards, and silence where guessing does not pay."""

from threading import Event as Cancel

import pytest
import torch
from support.models import demo_fp32, demo_tokenizer

from localgemma_cli.backends.local import decoding
from localgemma_cli.backends.local.decoding import generate, make_sampler, make_step
from localgemma_cli.backends.local.kvcache import KVCache
from localgemma_cli.backends.local.speculation import LONGEST, NGRAM, Lookup
from localgemma_cli.sampling import Sampling

GREEDY = Sampling(temperature=0)


def answer(
    prompt: list[int], sampling: Sampling, lookup: Lookup | None, kind: str = "full", count: int = 80
) -> tuple[list[int], KVCache]:
    model = demo_fp32()
    kv = KVCache(model.config, kind, 1024)
    tokens = generate(
        model,
        make_step(model, "none"),
        kv,
        prompt,
        make_sampler(sampling, model.device),
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
    assert answer(prompt, sampling, Lookup(), kind)[0] == answer(prompt, sampling, None, kind)[0]


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
    guessed, _ = answer([*prompt, *tokens], GREEDY, Lookup(), count=60)
    assert len(guessed) == 60
    assert len(calls) < without


def test_the_cache_holds_what_was_said_and_no_wrong_guess() -> None:
    prompt = prompts()[0]
    tokens, kv = answer(prompt, GREEDY, Lookup(), count=40)
    said = [*prompt, *tokens]
    kept = kv.reuse([*said, 5])
    assert kept >= len(said) - 1
    assert kv.tokens == said[:kept]


def test_an_answer_is_never_longer_than_asked() -> None:
    for count in (1, 2, 9):
        assert len(answer(prompts()[1], GREEDY, Lookup(), count=count)[0]) == count


def test_a_guess_is_what_followed_the_same_tokens_last() -> None:
    lookup = Lookup()
    history = [1, 2, 3, 50, 51, 9, 1, 2, 3, 60, 61, 62, 63, 64, 65, 66, 67, 68, 1, 2, 3]
    assert lookup.propose(history) == [60, 61, 62, 63, 64, 65, 66][:LONGEST]
    assert lookup.propose([*history, 60]) == [61, 62, 63, 64, 65, 66, 67]
    assert Lookup().propose([1, 2]) == []
    assert Lookup().propose(list(range(50))) == []


def test_guessing_stops_while_it_does_not_pay_and_is_tried_again() -> None:
    lookup = Lookup()
    history = [1, 2, 3] * 10
    assert lookup.propose(history)
    for _ in range(8):
        lookup.accepted(0, len(history))
    assert lookup.propose(history) == []
    assert lookup.propose([1, 2, 3] * 40)
    assert NGRAM == 3
