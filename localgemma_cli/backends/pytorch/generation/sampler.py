"""Samples the next token id from logits."""

from collections.abc import Sequence

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from localgemma_cli.sampling import Sampling


class Sampler:
    """Logits [1, vocabulary] -> next id [1], on the device, by transformers' processors in its order."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._device, self._penalty = device, sampling.repetition_penalty
        self._seen: torch.Tensor | None = None  # [1, vocabulary] bool: ids in the prompt or the answer so far
        self._prompt: Sequence[int] = ()
        self._processors = LogitsProcessorList()
        self._greedy = sampling.temperature == 0
        if self._greedy:
            return
        self._processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k is not None:
            self._processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p is not None:
            self._processors.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p is not None:
            self._processors.append(MinPLogitsWarper(sampling.min_p))
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def begin(self, prompt: Sequence[int]) -> None:
        """Start an answer to `prompt`, whose ids the repetition penalty applies to."""
        self._prompt, self._seen = prompt, None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if self._penalty != 1.0:
            logits = self._penalize(logits)
        scores = self._processors(None, logits)
        if self._greedy:
            token: torch.Tensor = scores.argmax(dim=-1)
        else:
            token = torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=self._generator)[0]
        if self._seen is not None:
            self._seen.index_fill_(1, token, True)
        return token

    def _penalize(self, logits: torch.Tensor) -> torch.Tensor:
        """transformers' RepetitionPenaltyLogitsProcessor, at a cost that does not grow with the answer."""
        if self._seen is None:
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
            self._seen[:, torch.tensor(self._prompt, dtype=torch.int64, device=self._device)] = True
        penalized = torch.where(logits < 0, logits * self._penalty, logits / self._penalty)
        return torch.where(self._seen, penalized, logits)
