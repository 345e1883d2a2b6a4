"""Log-probabilities of given answers through llama.cpp, on a real Gemma."""

from pathlib import Path

import pytest
from support.checkpoints import plan_for

from localgemma_cli.backends.llamacpp.backend import LlamaCppBackend, load_backend
from localgemma_cli.conversation import Message
from localgemma_cli.errors import ContextOverflowError

FRANCE = [Message("user", "The capital of France is")]
ANSWERS = [" Paris", " Lyon", " a city 𒐫"]


@pytest.fixture(scope="module")
def backend(real_gguf: Path) -> LlamaCppBackend:
    return load_backend(plan_for(real_gguf, "exact", context=512), real_gguf, lambda _: None)


def test_answers_score_as_the_same_weights_in_transformers_do(
    backend: LlamaCppBackend, real_checkpoint: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(real_checkpoint, dtype=torch.float32).eval()
    prompt = backend._prompter.encode(FRANCE)
    scores = backend.score(FRANCE, ANSWERS)
    for text, score in zip(ANSWERS, scores, strict=True):
        answer = backend._prompter.encode_answer(text)
        with torch.inference_mode():
            logprobs = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(answer))
        expected += float(logprobs[-1, sorted(backend._prompter.stop_ids)].logsumexp(0))
        assert score == pytest.approx(expected, abs=0.02 * abs(expected))  # the checkpoint is in bfloat16
    assert backend.score(FRANCE, ANSWERS[:1]) == pytest.approx(scores[:1], abs=1e-3)


def test_an_answer_longer_than_the_context_is_refused(backend: LlamaCppBackend) -> None:
    with pytest.raises(ContextOverflowError, match="more than the context of 512"):
        backend.score(FRANCE, [" word" * 600])
