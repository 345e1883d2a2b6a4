"""Greedy tokens with the kept KV cache against transformers' own `generate` on the whole history, fp32."""

from collections.abc import Iterator
from threading import Event as Cancel

import pytest
import torch
from support.decoding import generate
from support.models import demo_fp32, demo_tokenizer
from transformers import DynamicCache
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from localgemma_cli.backends.pytorch.generation import decode as decoding
from localgemma_cli.backends.pytorch.generation.decode import make_step
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.generation.sampler import Sampler
from localgemma_cli.sampling import Sampling

GREEDY = Sampling(temperature=0)
CONTEXT = 1024


def reference(history: list[int], count: int) -> list[int]:
    """transformers' greedy continuation of exactly `count` tokens, from scratch."""
    ids = torch.tensor([history])
    output = demo_fp32().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        eos_token_id=None,
    )
    return output[0, len(history) :].tolist()


def ours(kv: KVCache, history: list[int], count: int, lag: bool = False) -> tuple[list[int], int]:
    """Our greedy continuation, and how many tokens of the history were in the cache."""
    model = demo_fp32()
    cached = kv.reuse(history)
    tokens = generate(
        model,
        make_step(model, "none"),
        kv,
        history,
        Sampler(GREEDY, model.device),
        frozenset(),
        count,
        Cancel(),
        lag=lag,
    )
    return list(tokens), cached


def questions() -> Iterator[list[int]]:
    """Eight turns of ids that together cross the bundled model's sliding window several times."""
    tokenizer = demo_tokenizer()
    texts = [
        "Hello! My name is Ada and I like long questions, so here is one about presets and memory and pipes.",
        "What does the memory preset do, and what does it give up for that?",
        "x " * 150,
        "And exact?",
        "How do I get JSON out of it in a script?",
        "What is my name?",
        "<0x41> Which of the presets is the smallest one, and on what does it run?",
        "Thanks.",
    ]
    return (tokenizer.encode(f"\n{text}\n", add_special_tokens=False) for text in texts)


@pytest.mark.parametrize(
    ("kind", "lag"), [("full", False), ("sliding", False), ("static", False), ("static", True)]
)
def test_kept_cache_gives_the_tokens_of_a_fresh_prefill(kind: str, lag: bool) -> None:
    assert demo_fp32().config.sliding_window < 200
    kv = KVCache(demo_fp32().config, kind, CONTEXT)
    history = [demo_tokenizer().bos_token_id]
    for turn, question in enumerate(questions()):
        before = len(history)
        history += question
        answer, cached = ours(kv, history, 20, lag)
        assert answer == reference(history, 20), f"turn {turn}"
        assert cached == (before - 1 if turn else 0)  # all that stood, but for the one token never fed
        history += answer
    assert len(history) > 3 * demo_fp32().config.sliding_window


@pytest.mark.parametrize(("kind", "kept"), [("full", 300), ("static", 300), ("sliding", 0)])
def test_roll_back_past_the_sliding_window_is_exact(kind: str, kept: int) -> None:
    """The sliding kind has thrown away what it would need, so it reads everything again."""
    generator = torch.Generator().manual_seed(3)
    history = torch.randint(108, 1000, (600,), generator=generator).tolist()
    kv = KVCache(demo_fp32().config, kind, CONTEXT)
    ours(kv, history, 4)
    edited = history[:300] + [token + 1 for token in history[300:420]]
    answer, cached = ours(kv, edited, 24)
    assert cached == kept
    assert answer == reference(edited, 24)


def test_a_static_cache_moves_into_longer_buckets_and_stays_exact() -> None:
    history = torch.randint(108, 1000, (505,), generator=torch.Generator().manual_seed(8)).tolist()
    kv = KVCache(demo_fp32().config, "static", CONTEXT)
    answer, _ = ours(kv, history, 16)
    assert answer == reference(history, 16)
    assert kv.cache.layers[0].max_cache_len == CONTEXT
    short = KVCache(demo_fp32().config, "static", CONTEXT)
    ours(short, history[:100], 4)
    assert short.cache.layers[0].max_cache_len == 512


def test_a_long_prompt_is_prefilled_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = decoding.forward

    def recorded(model: object, tokens: torch.Tensor, cache: object, keep: int = 1) -> torch.Tensor:
        sizes.append(tokens.shape[1])
        return plain(model, tokens, cache, keep)

    monkeypatch.setattr(decoding, "forward", recorded)
    history = torch.randint(108, 1000, (900,), generator=torch.Generator().manual_seed(5)).tolist()
    answer, _ = ours(KVCache(demo_fp32().config, "full", CONTEXT), history, 3)
    assert sizes == [512, 388, 1, 1]
    assert answer == reference(history, 3)


@pytest.mark.parametrize("lag", [False, True], ids=["read at once", "read late"])
def test_cancel_stops_between_tokens_and_the_cache_stays_right(lag: bool) -> None:
    cancel = Cancel()
    kv = KVCache(demo_fp32().config, "full", CONTEXT)
    history = demo_tokenizer().encode("What is the memory preset?")
    taken = []
    for token in continued(kv, history, GREEDY, lag, cancel=cancel):
        taken.append(token)
        if len(taken) == 7:
            cancel.set()
    assert taken == reference(history, 7)
    assert_holds_what_was_said(kv, history + taken, lag)
    answer, _ = ours(kv, history + taken, 9)
    assert answer == reference(history + taken, 9)


def continued(
    kv: KVCache,
    history: list[int],
    sampling: Sampling,
    lag: bool,
    count: int = 50,
    stops: frozenset[int] = frozenset(),
    cancel: Cancel | None = None,
) -> Iterator[int]:
    model = demo_fp32()
    kv.reuse(history)
    sampler, step = Sampler(sampling, model.device), make_step(model, "none")
    return generate(model, step, kv, history, sampler, stops, count, cancel or Cancel(), lag=lag)


def assert_holds_what_was_said(kv: KVCache, said: list[int], lag: bool) -> None:
    """The ids of the cache, and as many slots of every layer; read late, the last one is there as well."""
    assert kv.tokens == (said if lag else said[:-1])
    assert {int(layer.get_seq_length()) for layer in kv.cache.layers} == {len(kv.tokens)}


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        ("sliding", GREEDY),
        ("full", Sampling(temperature=1.3, top_p=0.9, top_k=40, seed=5)),
        ("static", Sampling(temperature=0.7, repetition_penalty=1.3, seed=2)),
    ],
    ids=["greedy", "seeded", "penalized"],
)
def test_reading_late_changes_no_token_and_no_turn(sampling: Sampling, kind: str) -> None:
    """Up to a stop id or the limit, then another turn over what the cache holds, past the window."""
    history = demo_tokenizer().encode("Which presets are there, and what does each of them promise? " * 3)
    answers = []
    for lag in (False, True):
        kv, said, turns = KVCache(demo_fp32().config, kind, CONTEXT), list(history), []
        for turn in range(2):
            free = list(continued(kv, said, sampling, lag, count=12))
            stop = free[7]
            first = list(continued(kv, said, sampling, lag, count=12, stops=frozenset([stop])))
            assert first == free[: free.index(stop) + 1]
            if len(first) > 1:
                assert_holds_what_was_said(kv, said + first, lag)
            turns.append((free, first))
            said += [*first, 300 + turn, 301, 302]
        answers.append(turns)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_reading_late_never_runs_past_the_limit(count: int) -> None:
    kv = KVCache(demo_fp32().config, "static", 64)
    history = torch.randint(108, 1000, (64 - count,), generator=torch.Generator().manual_seed(4)).tolist()
    assert ours(kv, history, count, lag=True)[0] == reference(history, count)
    assert kv.tokens == (history + reference(history, count))[:63]


def test_an_interrupt_before_a_token_was_read_takes_its_step_back(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def read(reading: object) -> int:
        reads.append(1)
        if len(reads) == 5:
            raise KeyboardInterrupt
        return plain(reading)

    plain = decoding._ReadBack.read
    monkeypatch.setattr(decoding._ReadBack, "read", read)
    kv = KVCache(demo_fp32().config, "full", CONTEXT)
    history = demo_tokenizer().encode("What is the memory preset?")
    with pytest.raises(KeyboardInterrupt):
        list(continued(kv, history, GREEDY, lag=True))
    assert_holds_what_was_said(kv, history + reference(history, 4), lag=True)
    assert ours(kv, history, 9)[0] == reference(history, 9)


def test_a_short_chat_after_a_long_one_gets_a_short_static_cache() -> None:
    kv = KVCache(demo_fp32().config, "static", CONTEXT)
    long = torch.randint(108, 1000, (600,), generator=torch.Generator().manual_seed(6)).tolist()
    ours(kv, long, 4)
    assert kv.cache.layers[0].max_cache_len == CONTEXT
    answer, cached = ours(kv, long[:90], 12)
    assert {layer.max_cache_len for layer in kv.cache.layers} == {512}
    assert (answer, cached) == (reference(long[:90], 12), 89)


def test_cancel_before_the_prefill_gives_nothing() -> None:
    model, cancel = demo_fp32(), Cancel()
    cancel.set()
    kv = KVCache(model.config, "full", CONTEXT)
    sampler = Sampler(GREEDY, model.device)
    assert list(generate(model, make_step(model, "none"), kv, [2, 5], sampler, frozenset(), 5, cancel)) == []
    assert kv.tokens == []


def test_a_forward_that_fails_half_way_empties_the_cache() -> None:
    kv = KVCache(demo_fp32().config, "full", CONTEXT)
    history = demo_tokenizer().encode("What is the memory preset?")
    ours(kv, history, 5)
    kv.cache.layers[0].length += 1  # as after an interrupt in the first layer
    with pytest.raises(KeyboardInterrupt), kv.appending([5]):
        raise KeyboardInterrupt
    assert kv.tokens == []
    answer, cached = ours(kv, history, 5)
    assert (answer, cached) == (reference(history, 5), 0)


def some_logits() -> torch.Tensor:
    return torch.randn(1, 50, generator=torch.Generator().manual_seed(11)) * 3


def test_a_seed_repeats_itself_and_seeds_differ() -> None:
    logits = some_logits()

    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.5, seed=seed), torch.device("cpu"))
        return [int(sampler(logits)) for _ in range(20)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize(
    ("sampling", "most"),
    [
        (Sampling(temperature=2.0, top_k=3), 3),
        (Sampling(temperature=2.0, top_p=0.01), 1),
        (Sampling(temperature=2.0, min_p=1.0), 1),
    ],
    ids=["top-k", "top-p", "min-p"],
)
def test_filters_keep_only_the_likeliest(sampling: Sampling, most: int) -> None:
    logits = some_logits()
    sampler = Sampler(sampling, torch.device("cpu"))
    allowed = set(logits[0].topk(most).indices.tolist())
    assert {int(sampler(logits)) for _ in range(200)} == allowed


def test_repetition_penalty_is_that_of_transformers_over_prompt_and_answer() -> None:
    generator = torch.Generator().manual_seed(12)
    said = [5, 6, 7, 7]
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.7), torch.device("cpu"))
    sampler.begin(said)
    theirs = RepetitionPenaltyLogitsProcessor(1.7)
    for _ in range(60):
        logits = torch.randn(1, 50, generator=generator)
        token = int(sampler(logits.clone()))
        assert token == int(theirs(torch.tensor([said]), logits).argmax())
        said.append(token)
    assert len(set(said)) > 20


def test_a_new_answer_forgets_what_the_last_one_said() -> None:
    logits = some_logits()
    likeliest = int(logits.argmax())
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=50.0), torch.device("cpu"))
    sampler.begin([likeliest])
    assert int(sampler(logits)) != likeliest
    sampler.begin([])
    assert int(sampler(logits)) == likeliest


def test_sampled_frequencies_follow_the_temperature() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]]))
    sampler = Sampler(Sampling(temperature=0.5, seed=0), torch.device("cpu"))
    draws = [int(sampler(logits)) for _ in range(4000)]
    expected = torch.softmax(logits[0] / 0.5, dim=-1)
    for token in range(3):
        assert abs(draws.count(token) / 4000 - expected[token].item()) < 0.03


def test_our_cache_layers_agree_with_transformers_own_on_logits() -> None:
    """Not only the winning token: the whole distribution, past the window."""
    model = demo_fp32()
    ids = torch.randint(108, 1000, (1, 300), generator=torch.Generator().manual_seed(9))
    kv = KVCache(model.config, "full", CONTEXT)
    with torch.inference_mode():
        logits = decoding.prefill(model, kv, ids[0].tolist(), torch.device("cpu"), Cancel())
        expected = model(ids, past_key_values=DynamicCache(config=model.config)).logits[:, -1]
    assert logits is not None
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
