"""Speculative decoding: a small model guesses the next tokens, and the large one checks them in one forward.

Leviathan et al. 2023 (arXiv 2211.17192), with one difference: each token is sampled from the large model
alone, and a guess is accepted if it is that token, so the answer does not depend on the guesses.
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

_FIRST = 4  # guesses in the first round
_UNREAD = -1  # not a token id: marks tokens in the cache whose ids were not read back yet


class DraftModel:
    """The small model and its own KV cache, which is kept between answers like the large one's."""

    def __init__(
        self,
        plan: LoadPlan,
        model: PreTrainedModel,
        vocabulary: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`vocabulary`: both models know all ids below this."""
        self._model, self._vocabulary, self._context = model, vocabulary, plan.context_length
        self._kv = KVCache(model.config, plan.cache, plan.context_length)
        self._step = make_step(model, plan.compile)
        self._payoff = Payoff(clock)
        self._count = _FIRST
        self._cancel = Cancel()

    def begin_answer(self, cancel: Cancel) -> "DraftModel":
        """Call this before each answer. `cancel` also ends the prefill of a long prompt."""
        self._cancel = cancel
        self._payoff.begin()
        return self

    @torch.inference_mode()
    def propose(self, history: Sequence[int]) -> list[int]:
        """The small model's greedy continuation; empty for unknown ids, or while guessing is too slow."""
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

    def report(self, count: int, length: int) -> None:
        """Propose two more next time if all `count` were right, else one fewer."""
        right = count >= self._count
        self._count = min(self._count + 2, LONGEST) if right else max(self._count - 1, 1)

    def _continue(self, unread: list[int], count: int) -> list[int]:
        """The `count` likeliest tokens, one after the other; all ids are copied to the host at the end."""
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


def load_draft_model(
    plan: LoadPlan, draft: LoadPlan, folder: Path, tokenizer: Tokenizer, progress: ProgressSink
) -> DraftModel:
    """Load the draft model for the model of `plan`; UsageError where their tokenizers differ."""
    if not has_same_vocabulary(tokenizer, load_tokenizer(folder)):
        raise UsageError(
            f"{draft.model.name} cannot be the assistant of {plan.model.name}: their tokenizers differ.",
            "Use a smaller model of the same family, or --assistant lookup.",
        )
    vocabulary = min(plan.model.architecture.vocabulary, draft.model.architecture.vocabulary)
    return DraftModel(draft, load_model(draft, folder, progress), vocabulary)


def has_same_vocabulary(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether both tokenizers map the same ids to the same tokens, special ones included."""
    return one.vocabulary == other.vocabulary
