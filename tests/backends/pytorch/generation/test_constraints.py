"""Constrained decoding: the tokens are those that transformers generates under the same masks."""

import json
from threading import Event as Cancel

import numpy as np
import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from support.checkpoints import plan_for
from support.models import DEMO, demo_fp32, demo_tokenizer, own_tokenizer
from transformers import LogitsProcessor, LogitsProcessorList

from localgemma_cli.backends.pytorch.backend import LocalBackend, load_backend
from localgemma_cli.backends.pytorch.generation.constraints import TokenGrammars, mask_logits
from localgemma_cli.backends.pytorch.generation.sampler import Sampler
from localgemma_cli.constraint import Choices, Constraint, JsonSchema, Regex
from localgemma_cli.conversation import Message
from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.events import Delta, Finished
from localgemma_cli.prompts.answer_value import answer_value
from localgemma_cli.prompts.grammar import grammar_of
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.sampling import Sampling

QUESTION = [Message("user", "Which preset is the smallest? As JSON:")]
PERSON = JsonSchema(
    json.dumps(
        {
            "type": "object",
            "properties": {
                "näme": {"type": "string", "maxLength": 12, "pattern": "^[A-Z][a-zé]+$"},
                "size": {"type": "number", "minimum": 0.5, "maximum": 3},
                "tags": {"type": "array", "items": {"enum": ["memory", "é 🙂", None]}, "maxItems": 3},
            },
            "required": ["näme", "size", "tags"],
        }
    )
)
CONSTRAINTS = [PERSON, Regex("(I am|Es ist) [A-Z]\\w{2,9}(é|🙂)!"), JsonSchema('{"type": "integer"}')]
STOPS = Prompter(own_tokenizer()).stop_ids


class Masked(LogitsProcessor):
    """Masks logits with llguidance's own tokenizer of transformers' one."""

    def __init__(self, constraint: Constraint, prompt: int) -> None:
        tokenizer = from_tokenizer(demo_tokenizer(), eos_token=sorted(STOPS))
        self._matcher, self._read = LLMatcher(tokenizer, grammar_of(constraint)), prompt

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for token in ids[0, self._read :].tolist():
            self._matcher.consume_token(token)
        self._read = ids.shape[1]
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: scores.shape[1]].astype(bool))
        return scores.masked_fill(~allowed, -torch.inf)


def reference(constraint: Constraint, penalty: float) -> list[int]:
    """transformers' greedy answer, without what ends it."""
    ids = torch.tensor([Prompter(own_tokenizer()).encode(QUESTION)])
    out = demo_fp32().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=60,
        eos_token_id=sorted(STOPS),
        repetition_penalty=penalty,
        logits_processor=LogitsProcessorList([Masked(constraint, ids.shape[1])]),
    )
    return [token for token in out[0, ids.shape[1] :].tolist() if token not in STOPS]


def answer(backend: LocalBackend, constraint: Constraint, **options: object) -> tuple[str, Finished]:
    sampling = Sampling(**{"max_new_tokens": 60, "constraint": constraint, **options})  # type: ignore[arg-type]
    *events, finished = backend.stream(QUESTION, sampling, Cancel())
    assert isinstance(finished, Finished)
    return "".join(event.text for event in events if isinstance(event, Delta)), finished


@pytest.fixture(scope="module")
def fp32() -> LocalBackend:
    return load_backend(plan_for(DEMO, "exact", dtype="float32"), DEMO, lambda _: None)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_are_those_of_transformers_under_the_same_masks(
    fp32: LocalBackend, constraint: Constraint, penalty: float
) -> None:
    text, finished = answer(fp32, constraint, temperature=0, repetition_penalty=penalty)
    assert list(finished.token_ids or ()) == reference(constraint, penalty)
    assert finished.finish_reason == "stop"
    answer_value(constraint, text)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 5, "top_p": 0.9}, {"temperature": 50, "min_p": 0.01}], ids=str
)
def test_drawn_answers_keep_to_the_constraint(
    fp32: LocalBackend, constraint: Constraint, options: dict[str, float]
) -> None:
    for seed in range(2):
        text, finished = answer(fp32, constraint, **{"temperature": 1.5, "seed": seed, **options})
        if finished.finish_reason == "stop":
            answer_value(constraint, text)


def test_guessed_tokens_are_checked_against_the_constraint() -> None:
    with_lookup = plan_for(DEMO, "exact", dtype="float32", assistant="lookup")
    text, finished = answer(load_backend(with_lookup, DEMO, lambda _: None), PERSON, temperature=0)
    assert list(finished.token_ids or ()) == reference(PERSON, 1.0)
    answer_value(PERSON, text)


def test_a_cut_answer_says_so_and_a_limit_at_its_last_token_does_not_cut_it(fp32: LocalBackend) -> None:
    _, whole = answer(fp32, PERSON, temperature=0)
    count = len(whole.token_ids or ())
    assert answer(fp32, PERSON, temperature=0, max_new_tokens=count)[1].finish_reason == "stop"
    assert answer(fp32, PERSON, temperature=0, max_new_tokens=count - 1)[1].finish_reason == "length"


def test_a_choice_is_the_likeliest_whole_one_by_transformers_probabilities(fp32: LocalBackend) -> None:
    choices = ("memory", "memory_extreme", "exact", "speed", "the memory preset 🙂")
    prompter = Prompter(own_tokenizer())
    prompt = prompter.encode(QUESTION)
    scores = []
    for choice in choices:
        ids = [*prompt, *prompter.encode_answer(choice)]
        with torch.inference_mode():
            logprobs = demo_fp32()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        own = sum(logprobs[at - 1, ids[at]] for at in range(len(prompt), len(ids)))
        scores.append(own + logprobs[len(ids) - 1, sorted(STOPS)].logsumexp(0))
    expected = torch.stack(scores).softmax(0).tolist()
    text, finished = answer(fp32, Choices(choices), temperature=0)
    assert dict(finished.choices or {}) == pytest.approx(dict(zip(choices, expected, strict=True)), abs=1e-3)
    assert sum((finished.choices or {}).values()) == pytest.approx(1, abs=1e-9)
    assert text == choices[expected.index(max(expected))]
    assert finished.token_ids == tuple(prompter.encode_answer(text))
    assert (finished.finish_reason, finished.usage.prompt_tokens) == ("stop", len(prompt))


def test_a_mask_for_a_device_forbids_what_the_mask_for_the_host_does() -> None:
    grammar = TokenGrammars(own_tokenizer(), STOPS).begin(PERSON)
    for token in own_tokenizer().encode('{"näme": "'):
        assert grammar.allows(token)
        grammar.accept(token)
    for size in (own_tokenizer().size - 3, own_tokenizer().size, own_tokenizer().size + 64):
        forbidden = grammar.forbidden(size)
        masked = mask_logits(torch.zeros(1, size), grammar)[0]
        assert torch.equal(masked.isinf(), torch.from_numpy(forbidden))
        assert forbidden[own_tokenizer().size :].all()
    allowed = [token for token in range(own_tokenizer().size) if grammar.allows(token)]
    assert allowed == np.flatnonzero(~grammar.forbidden(own_tokenizer().size)).tolist()


def test_the_end_is_allowed_only_after_a_whole_text() -> None:
    grammar = TokenGrammars(own_tokenizer(), STOPS).begin(Regex("a+"))
    assert not any(grammar.allows(stop) for stop in STOPS)
    grammar.accept(own_tokenizer().encode("a")[0])
    assert all(grammar.allows(stop) for stop in STOPS)
    assert not grammar.is_complete
    assert not grammar.forbidden(own_tokenizer().size)[sorted(STOPS)].any()


def test_a_sampler_on_a_device_draws_what_the_grammar_allows() -> None:
    """As on a CUDA device; the operations are the same on any."""
    from localgemma_cli.backends.pytorch.generation.sampler import _DeviceSampler

    tokenizer, device = own_tokenizer(), torch.device("cpu")
    for temperature in (0, 1.5):
        grammar = TokenGrammars(tokenizer, STOPS).begin(PERSON)
        sampling = Sampling(temperature=temperature, seed=1, repetition_penalty=1.2)
        draw = _DeviceSampler(sampling, device, grammar)
        draw.begin([2])
        logits = torch.randn(1, tokenizer.size, generator=torch.Generator().manual_seed(1))
        for _ in range(30):
            if grammar.is_complete:
                break
            token = int(draw(logits))
            assert grammar.allows(token)
            grammar.accept(token)


def test_a_weight_that_draw_leaves_to_a_forbidden_token_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the least number that is drawn, and the first of the vocabulary, <pad>, forbidden."""
    grammar = TokenGrammars(own_tokenizer(), STOPS).begin(Regex("(?s:.)*"))
    sampler = Sampler(Sampling(temperature=1.0), torch.device("cpu"), grammar)
    sampler.begin([2])
    monkeypatch.setattr(sampler._draw, "_random", Zero())
    assert grammar.forbidden(1).all()
    assert grammar.allows(int(sampler(torch.zeros(1, own_tokenizer().size))))


class Zero:
    def random(self) -> float:
        return 0.0


def test_a_grammar_in_an_error_ends_the_answer() -> None:
    grammar = TokenGrammars(own_tokenizer(), STOPS).begin(Regex("a"))
    with pytest.raises(LocalGemmaError, match="The answer cannot be constrained"):
        grammar.accept(own_tokenizer().encode("b")[0])
