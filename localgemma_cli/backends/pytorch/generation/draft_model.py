"""A small model's guesses at what the larger one will say; the larger one checks them all in one forward.

Leviathan et al. 2023 (arXiv 2211.17192), with one difference: each token is drawn from the larger model alone
and a guess counts where it is that very token, so that an answer does not depend on the guesses at all.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event as Cancel

import torch
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.generation.decode import forward, make_step, prefill
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.generation.prompt_lookup import LONGEST, Payoff
from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.errors import UsageError
from localgemma_cli.events import ProgressSink
from localgemma_cli.planning.plan import LoadPlan
from localgemma_cli.prompts.tokenizer import Tokenizer
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer

_FIRST = 4  # guesses per round, before any has been checked
_UNREAD = -1  # no token's id: what a roll-back finds where a draft was broken off


class Draft:
    """The small model with a KV cache of its own, which outlives an answer as the larger one's does."""

    def __init__(
        self,
        plan: LoadPlan,
        model: PreTrainedModel,
        vocabulary: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`vocabulary`: ids below this are known to both models."""
        self._model, self._vocabulary, self._context = model, vocabulary, plan.context_length
        self._kv = KVCache(model.config, plan.cache, plan.context_length)
        self._step = make_step(model, plan.compile)
        self._payoff = Payoff(clock)
        self._count = _FIRST
        self._cancel = Cancel()

    def for_answer(self, cancel: Cancel) -> "Draft":
        """To be called before each answer: `cancel` also ends the reading of a long prompt."""
        self._cancel = cancel
        self._payoff.begin()
        return self

    @torch.inference_mode()
    def propose(self, history: Sequence[int]) -> list[int]:
        """The small model's greedy continuation; none while that does not pay, or where it cannot read."""
        count = min(self._count, self._context - len(history))
        if count < 1 or not self._payoff.next_round(len(history)):
            return []
        self._kv.reuse(history)
        unread = list(history[len(self._kv.tokens) :])
        if max(unread) >= self._vocabulary:
            return []
        if len(unread) > LONGEST:
            prefill(self._model, self._kv, history[:-1], self._model.device, self._cancel)
            self._payoff.restart_round()
            unread = [history[-1]]
        return [] if self._cancel.is_set() else self._continue(unread, count)

    def accepted(self, count: int, length: int) -> None:
        """`count` guesses were right: two more next time after a faultless round, one fewer after another."""
        right = count >= self._count
        self._count = min(self._count + 2, LONGEST) if right else max(self._count - 1, 1)

    def _continue(self, unread: list[int], count: int) -> list[int]:
        """`count` likeliest tokens, one after the other; the device's ids are read back once."""
        start, device = len(self._kv.tokens), self._model.device
        fed = torch.tensor([unread], device=device)
        drawn: list[torch.Tensor] = []
        for _ in range(count):
            with self._kv.appending([_UNREAD] * fed.shape[1]) as cache:
                logits = self._step(fed, cache) if fed.shape[1] == 1 else forward(self._model, fed, cache)
            fed = logits[:, : self._vocabulary].argmax(dim=-1, keepdim=True)
            drawn.append(fed)
        guesses: list[int] = torch.cat(drawn, dim=1)[0].tolist()
        self._kv.tokens[start:] = [*unread, *guesses[:-1]]
        return guesses


def load_draft(
    plan: LoadPlan, draft: LoadPlan, folder: Path, tokenizer: Tokenizer, progress: ProgressSink
) -> Draft:
    """`draft` for the model of `plan`, whose tokenizer it must share: a UsageError where it does not."""
    if not same_tokens(tokenizer, load_tokenizer(folder)):
        raise UsageError(
            f"{draft.model.name} cannot be the assistant of {plan.model.name}: their tokenizers differ.",
            "Take a smaller model of the same family, or --assistant lookup.",
        )
    vocabulary = min(plan.model.architecture.vocabulary, draft.model.architecture.vocabulary)
    return Draft(draft, load_model(draft, folder, progress), vocabulary)


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether every id, special ones included, stands for the same piece of text."""
    return one.vocabulary == other.vocabulary
