"""A real Gemma in float32 answers token for token as transformers' `generate` does.

All 20 prompts with 100 tokens each: `pytest -m slow tests/backends/pytorch/test_real_gemma.py` (minutes).
"""

from pathlib import Path
from threading import Event as Cancel

import pytest
import torch
from support.checkpoints import plan_for
from transformers import AutoModelForCausalLM, PreTrainedModel

from localgemma_cli.backends.pytorch.backend import LocalBackend, load_backend
from localgemma_cli.conversation import Message
from localgemma_cli.events import Finished
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer
from localgemma_cli.sampling import Sampling

PROMPTS = (
    "The meaning to life and the universe is",
    "def fibonacci(n):\n",
    "Q: What is the capital of France?\nA:",
    "Once upon a time, in a village by the sea,",
    "Die Hauptstadt von Österreich ist",
    "The three laws of thermodynamics are",
    "SELECT name FROM customers WHERE",
    "人工知能とは、",
    "1, 1, 2, 3, 5, 8, 13,",
    "Dear Sir or Madam,\n\n",
    "<html>\n<head>\n  <title>",
    "The quick brown fox",
    "# Recipe for bread\n\n## Ingredients\n\n-",
    "In 1969, Neil Armstrong",
    "La philosophie est",
    "To make a good cup of coffee,",
    "import numpy as np\n\nx = np.",
    "Water boils at",
    "Пушкин родился",
    "🙂 is an emoji that",
)


@pytest.fixture(scope="module")
def reference(real_checkpoint: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(real_checkpoint, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def ours(real_checkpoint: Path) -> LocalBackend:
    return load_backend(plan_for(real_checkpoint, "exact", dtype="float32"), real_checkpoint, lambda _: None)


def answer(model: LocalBackend, prompt: str, count: int) -> list[int]:
    sampling = Sampling(temperature=0, max_new_tokens=count)
    *_, last = model.stream([Message("user", prompt)], sampling, Cancel())
    assert isinstance(last, Finished)
    return list(last.token_ids or ())


def expected(model: PreTrainedModel, folder: Path, prompt: str, count: int) -> list[int]:
    prompter = Prompter(load_tokenizer(folder))
    ids = torch.tensor([prompter.encode([Message("user", prompt)])])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, eos_token_id=1
    )
    tokens: list[int] = output[0, ids.shape[1] :].tolist()
    return tokens[:-1] if tokens[-1] == 1 else tokens


@pytest.mark.parametrize("prompt", PROMPTS[:2])
def test_the_first_tokens_are_the_reference(
    prompt: str, ours: LocalBackend, reference: PreTrainedModel, real_checkpoint: Path
) -> None:
    assert answer(ours, prompt, 16) == expected(reference, real_checkpoint, prompt, 16)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_hundred_tokens_are_the_reference(
    prompt: str, ours: LocalBackend, reference: PreTrainedModel, real_checkpoint: Path
) -> None:
    assert answer(ours, prompt, 100) == expected(reference, real_checkpoint, prompt, 100)
