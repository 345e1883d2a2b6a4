"""Log-probabilities of given tokens are those of transformers' own log_softmax."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import plan_for
from support.models import DEMO, demo_fp32, own_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

import localgemma_cli.backends.pytorch.generation.scoring as scoring
from localgemma_cli.backends.pytorch.backend import LocalBackend, load_backend
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.conversation import Message
from localgemma_cli.errors import ContextOverflowError
from localgemma_cli.prompts.prompter import Prompter

QUESTION = [Message("user", "Which preset is the smallest?")]
ANSWERS = ["memory", "The memory preset is the smallest.", "", "straße 🙂 <end_of_turn>"]


def expected_scores(
    model: PreTrainedModel, prompter: Prompter, messages: list[Message], answer: str
) -> list[float]:
    """transformers' log-probabilities of each token of the answer, and of any end after it."""
    prompt = prompter.encode(messages)
    ids = [*prompt, *prompter.encode([*messages, Message("assistant", answer)])[len(prompt) :]]
    with torch.inference_mode():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    scores = [float(logprobs[at - 1, ids[at]]) for at in range(len(prompt), len(ids))]
    ends = logprobs[len(ids) - 1].exp()[sorted(prompter.stop_ids)].sum().log()
    return [*scores, float(ends)]


@pytest.fixture(scope="module")
def fp32() -> LocalBackend:
    return load_backend(plan_for(DEMO, "exact", dtype="float32"), DEMO, lambda _: None)


def test_whole_answers_score_as_transformers_does(fp32: LocalBackend) -> None:
    prompter = Prompter(own_tokenizer())
    expected = [sum(expected_scores(demo_fp32(), prompter, QUESTION, each)) for each in ANSWERS]
    assert fp32.score(QUESTION, ANSWERS) == pytest.approx(expected, abs=1e-3)
    assert fp32.score(QUESTION, ANSWERS[::-1]) == pytest.approx(expected[::-1], abs=1e-3)  # from the cache
    assert fp32.score(QUESTION, []) == []


@pytest.mark.parametrize("cache", ["full", "sliding", "static"])
def test_an_answer_is_scored_in_parts_over_any_cache(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a large vocabulary, whose logits are computed for some tokens at a time."""
    prompter = Prompter(own_tokenizer())
    prompt, answer = prompter.encode(QUESTION), ANSWERS[1]
    expected = expected_scores(demo_fp32(), prompter, QUESTION, answer)
    monkeypatch.setattr(scoring, "_MOST_LOGITS", 3 * demo_fp32().config.vocab_size)
    kv = KVCache(demo_fp32().config, cache, 512)
    ids = [*prompt, *prompter.encode_answer(answer)]
    for _ in range(2):
        scores = scoring.score_tokens(demo_fp32(), kv, ids, len(prompt), prompter.stop_ids)
        assert scores == pytest.approx(expected, abs=1e-3)
    without_end = scoring.score_tokens(demo_fp32(), kv, ids, len(prompt))
    assert without_end == pytest.approx(expected[:-1], abs=1e-3)
    whole = scoring.score_tokens(demo_fp32(), kv, ids, 1)
    assert (len(whole), whole[len(prompt) - 1 :]) == (len(ids) - 1, pytest.approx(expected[:-1], abs=1e-3))


def test_an_answer_longer_than_the_context_is_refused(fp32: LocalBackend) -> None:
    with pytest.raises(ContextOverflowError, match="more than the context of"):
        fp32.score(QUESTION, ["word " * fp32.context_length])


@pytest.mark.slow
def test_a_real_gemma_scores_as_transformers_does(real_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(real_checkpoint, dtype=torch.float32).eval()
    plan = plan_for(real_checkpoint, "exact", dtype="float32")
    backend = load_backend(plan, real_checkpoint, lambda _: None)
    messages, answers = [Message("user", "The capital of France is")], [" Paris.", " Lyon", " a city 🙂"]
    expected = [sum(expected_scores(model, backend._prompter, messages, each)) for each in answers]
    assert backend.score(messages, answers) == pytest.approx(expected, abs=1e-3)
