"""The log-probabilities of an answer are those of transformers' own log_softmax, however it was sampled."""

from threading import Event as Cancel

import pytest
import torch
from support.checkpoints import plan_for
from support.models import DEMO, demo_fp32, own_tokenizer

from localgemma_cli.backends.pytorch.backend import LocalBackend, load_backend
from localgemma_cli.backends.pytorch.generation import decode
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.generation.sampler import Sampler
from localgemma_cli.backends.pytorch.generation.token_scores import TokenScores
from localgemma_cli.backends.scored_token import ScoredToken, describe_token
from localgemma_cli.conversation import Message
from localgemma_cli.events import Finished
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.sampling import Sampling

QUESTION = [Message("user", "Say twice: localgemma plan --all shows what fits.")]


def expected_logprobs(prompt: list[int], answer: tuple[int, ...]) -> torch.Tensor:
    """transformers' log-probabilities [tokens, vocabulary] at each token of the answer."""
    with torch.inference_mode():
        logits = demo_fp32()(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
    return logits[len(prompt) - 1 : -1].float().log_softmax(-1)


def finished(backend: LocalBackend, sampling: Sampling) -> Finished:
    *_, last = backend.stream(QUESTION, sampling, Cancel())
    assert isinstance(last, Finished)
    return last


@pytest.fixture(scope="module", params=["none", "lookup"])
def fp32(request: pytest.FixtureRequest) -> LocalBackend:
    plan = plan_for(DEMO, "exact", dtype="float32", assistant=request.param)
    return load_backend(plan, DEMO, lambda _: None)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, logprobs=3),
        Sampling(temperature=1.5, top_p=0.9, min_p=0.01, repetition_penalty=1.3, seed=4, logprobs=5),
        Sampling(temperature=0, logprobs=0),
    ],
    ids=["greedy", "filtered", "chosen only"],
)
def test_an_answer_has_transformers_log_probabilities(fp32: LocalBackend, sampling: Sampling) -> None:
    last, prompter = finished(fp32, sampling), Prompter(own_tokenizer())
    ids, entries = last.token_ids or (), last.logprobs or ()
    assert [each.id for each in entries] == list(ids)
    assert len(ids) > 10
    expected = expected_logprobs(prompter.encode(QUESTION), ids)
    values, indices = expected.topk(sampling.logprobs or 0)
    for at, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(float(expected[at, ids[at]]), abs=1e-3)
        assert [each.logprob for each in entry.top_logprobs] == pytest.approx(values[at].tolist(), abs=1e-3)
        far_apart = [each.id for each in entry.top_logprobs][:1]
        assert far_apart == indices[at, :1].tolist()
    assert "".join(each.token for each in entries) == own_tokenizer().decode(ids)


def test_nothing_is_kept_unless_asked_for(fp32: LocalBackend) -> None:
    assert finished(fp32, Sampling(temperature=0, max_new_tokens=4)).logprobs is None


def test_a_step_launched_ahead_has_its_own_entry() -> None:
    """As on a GPU, where an id is read back after the next step has begun."""
    prompt = Prompter(own_tokenizer()).encode(QUESTION)
    sampler = Sampler(Sampling(temperature=0, logprobs=1), torch.device("cpu"))
    kv = KVCache(demo_fp32().config, "full", 512)
    step = decode.make_step(demo_fp32(), "none")
    events = decode.generate(demo_fp32(), step, kv, prompt, sampler, frozenset({1}), 12, Cancel(), lag=True)
    ids = tuple(each for each in events if isinstance(each, int))
    scored = sampler.scored(len(ids))
    expected = expected_logprobs(prompt, ids)
    assert [each.id for each in scored] == list(ids)
    assert [each.logprob for each in scored] == pytest.approx(
        [float(row[token]) for row, token in zip(expected, ids, strict=True)], abs=1e-3
    )


def test_a_vocabulary_smaller_than_what_is_asked_for() -> None:
    scores = TokenScores(20)
    logprobs = torch.tensor([0.5, 0.25, 0.25]).log()
    scores.add(torch.tensor([2]), logprobs)
    (only,) = scores.first(9)
    assert (only.id, len(only.top)) == (2, 3)


def test_a_token_has_its_text_and_its_bytes() -> None:
    tokenizer = own_tokenizer()
    byte, word, end = (tokenizer.id_of(each) for each in ("<0xF0>", "\u2581the", "<end_of_turn>"))
    assert byte is not None
    assert word is not None
    assert end is not None
    described = describe_token(ScoredToken(word, -1.0, ((byte, -0.5), (end, -2.0), (10**6, -3.0))), tokenizer)
    assert (described.token, described.bytes) == (" the", tuple(b" the"))
    texts = [(each.token, each.bytes) for each in described.top_logprobs]
    assert texts == [("\ufffd", (0xF0,)), ("<end_of_turn>", tuple(b"<end_of_turn>")), ("", ())]
