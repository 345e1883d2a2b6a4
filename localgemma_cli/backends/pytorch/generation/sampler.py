"""Samples the next token id from logits."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from localgemma_cli.backends.pytorch.generation.constraints import TokenGrammar, mask_logits
from localgemma_cli.backends.pytorch.generation.token_scores import TokenScores
from localgemma_cli.backends.scored_token import ScoredToken
from localgemma_cli.sampling import Sampling

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_BLOCK = 256  # numbers: a search looks at each block's largest number or sum first
_SMALLEST = np.float32(-80)  # a logarithm: weights below 1e-35 of the largest would be slow denormals
_FEW = 1024  # numbers that are sorted
_LEAST = (1e-2, 1e-4)  # weights; most distributions have few larger ones, with most of the sum


class Sampler:
    """Logits [1, vocabulary] float32 -> next id [1], on the device, as transformers' processors in its order.

    On a CPU with NumPy: PyTorch's operations over a vocabulary of 262,144 take several milliseconds. With
    `grammar`, only what it allows is drawn, and each id has to be given to `accept` before the next call.
    """

    def __init__(self, sampling: Sampling, device: torch.device, grammar: TokenGrammar | None = None) -> None:
        self._grammar = grammar
        self._draw = (
            _HostSampler(sampling, grammar)
            if device.type == "cpu"
            else _DeviceSampler(sampling, device, grammar)
        )
        self._scores = None if sampling.logprobs is None else TokenScores(sampling.logprobs)

    @property
    def is_complete(self) -> bool:
        """Whether the grammar's text is whole and nothing can follow it."""
        return self._grammar is not None and self._grammar.is_complete

    def accept(self, token: int) -> None:
        """Note an id that was drawn and read back."""
        if self._grammar is not None:
            self._grammar.accept(token)

    def begin(self, prompt: Sequence[int]) -> None:
        """Start an answer to `prompt`, whose ids the repetition penalty applies to."""
        self._draw.begin(prompt)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if self._scores is None:
            return self._draw(logits)
        logprobs = logits[0].log_softmax(dim=-1)  # before anything changes the logits
        token = self._draw(logits)
        self._scores.add(token, logprobs)
        return token

    def scored(self, count: int) -> list[ScoredToken]:
        """The first `count` tokens with their log-probabilities; empty where they were not asked for."""
        return [] if self._scores is None else self._scores.first(count)


class _HostSampler:
    def __init__(self, sampling: Sampling, grammar: TokenGrammar | None) -> None:
        self._sampling, self._grammar = sampling, grammar
        self._random = np.random.default_rng(sampling.seed)
        self._prompt: Sequence[int] = ()
        self._seen: _SeenIds | None = None
        self._scores: Floats = np.empty(0, np.float32)  # kept: fresh memory takes longer than the arithmetic

    def begin(self, prompt: Sequence[int]) -> None:
        self._prompt, self._seen = prompt, None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        token = self._choose(logits[0].numpy())
        if self._seen is not None:
            self._seen.add(token)
        return torch.tensor([token])

    def _choose(self, logits: Floats) -> int:
        sampling = self._sampling
        if sampling.repetition_penalty == 1.0 and sampling.temperature == 0:
            likeliest = int(logits.argmax())
            if self._grammar is None or self._grammar.allows(likeliest):  # cheaper than all that is allowed
                return likeliest
        if len(self._scores) != len(logits):
            self._scores = np.empty_like(logits)
        np.divide(logits, np.float32(sampling.temperature or 1), out=self._scores)
        if sampling.repetition_penalty != 1.0:
            self._seen = self._seen or _SeenIds(self._prompt, len(logits))
            self._seen.penalize(self._scores, sampling.repetition_penalty)
        if self._grammar is None:
            return self._pick(self._scores)
        forbidden = self._grammar.forbidden(len(logits))
        if np.count_nonzero(forbidden) > len(logits) // 2:
            ids = np.flatnonzero(~forbidden)
            return int(ids[self._pick(self._scores[ids])])
        np.putmask(self._scores, forbidden, -np.inf)  # faster than to copy most of them
        token = self._pick(self._scores)
        # `draw` leaves a weight of 1e-35 to what is forbidden
        return token if self._grammar.allows(token) else int(self._scores.argmax())

    def _pick(self, scores: Floats) -> int:
        if self._sampling.temperature == 0:
            return int(scores.argmax())
        return draw(scores, self._sampling, self._random.random())


class _SeenIds:
    """The different ids in the prompt and in the answer so far."""

    def __init__(self, prompt: Sequence[int], vocabulary: int) -> None:
        self._is_seen = np.zeros(vocabulary, np.bool_)
        self._is_seen[np.asarray(prompt, np.int64)] = True
        self._ids = np.flatnonzero(self._is_seen)

    def add(self, token: int) -> None:
        if not self._is_seen[token]:
            self._is_seen[token] = True
            self._ids = np.append(self._ids, token)

    def penalize(self, scores: Floats, penalty: float) -> None:
        """Apply transformers' RepetitionPenaltyLogitsProcessor in place; a temperature does not change it."""
        some = scores[self._ids]
        scores[self._ids] = np.where(some < 0, some * np.float32(penalty), some / np.float32(penalty))


def draw(scores: Floats, sampling: Sampling, position: float) -> int:
    """Draw an id at `position`, 0 to 1, of the filtered distribution's cumulative sum over ids.

    `scores` are divided by the temperature, and are changed. ValueError where one is not a number.
    """
    ids: Ids | None = None  # of `scores`; None: all
    if sampling.top_k is not None and sampling.top_k < len(scores):
        ids = find_largest(scores, sampling.top_k)
        scores = scores[ids]
    scores -= scores.max()
    if scores.min() < _SMALLEST:  # rare, and NumPy looks six times as fast as it writes
        np.maximum(scores, _SMALLEST, out=scores)
    weights: Floats = torch.from_numpy(scores).exp_().numpy()
    if sampling.top_p is not None and sampling.top_p < 1:
        ids, weights = _select(ids, weights, find_top_p(weights, sampling.top_p))
    if sampling.min_p is not None:
        kept = np.flatnonzero(weights >= np.float32(sampling.min_p) * weights.max())
        ids, weights = _select(ids, weights, kept)
    index = find_position(weights, position)
    return index if ids is None else int(ids[index])


def _select(ids: Ids | None, weights: Floats, kept: Ids) -> tuple[Ids, Floats]:
    return kept if ids is None else ids[kept], weights[kept]


def find_largest(scores: Floats, count: int) -> Ids:
    """Return the indices of the `count` largest scores, and of any equal to the least of these."""
    blocks = scores[: len(scores) // _BLOCK * _BLOCK].reshape(-1, _BLOCK).max(axis=1)
    if count <= len(blocks):  # so many blocks have a score of at least this
        some = np.flatnonzero(scores >= np.partition(blocks, -count)[-count])
    else:
        some = np.arange(len(scores))
    least = np.partition(scores[some], -count)[-count]
    found: Ids = some[scores[some] >= least]
    return found


def find_top_p(weights: Floats, top_p: float) -> Ids:
    """Return the indices of the largest weights, without those that together are at most 1 - `top_p` of all.

    The largest weight is 1. Equal weights are kept together.
    """
    total = float(weights.sum())
    left_out = (1 - top_p) * total
    some, below = _bracket(weights, total, left_out)
    while len(some) > _FEW:
        is_small = some < some.mean()
        small = some[is_small]
        if len(small) in (0, len(some)):
            break
        mass = float(small.sum())
        if below + mass > left_out:
            some = small
        else:
            some, below = some[~is_small], below + mass
    some = np.sort(some)
    is_kept = below + some.cumsum(dtype=np.float64) > left_out
    least = some[is_kept.argmax()] if is_kept.any() else some[-1]
    return np.flatnonzero(weights >= least)


def _bracket(weights: Floats, total: float, left_out: float) -> tuple[Floats, float]:
    """Return weights among which the least that is kept lies, and the sum of all smaller ones.

    `total`: of all weights.
    """
    for least in _LEAST:
        some = weights[np.flatnonzero(weights >= np.float32(least))]
        below = total - float(some.sum())
        if below <= left_out:
            return some, max(below, 0.0)
    return weights, 0.0


def find_position(weights: Floats, position: float) -> int:
    """Return the index at `position`, 0 to 1, of the weights' cumulative sum."""
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64).cumsum()
    if not np.isfinite(sums[-1]):
        raise ValueError("The model's logits are not numbers.")
    wanted = position * sums[-1]
    block = min(int(np.searchsorted(sums, wanted, side="right")), len(sums) - 1)
    first = block * _BLOCK
    before = float(sums[block - 1]) if block else 0.0
    inner = before + weights[first : first + _BLOCK].cumsum(dtype=np.float64)
    within = int(np.searchsorted(inner, wanted, side="right"))
    return first + min(within, len(inner) - 1)


class _DeviceSampler:
    """By transformers' processors, without waiting for the device."""

    def __init__(self, sampling: Sampling, device: torch.device, grammar: TokenGrammar | None) -> None:
        self._device, self._penalty, self._grammar = device, sampling.repetition_penalty, grammar
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
        self._prompt, self._seen = prompt, None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if self._penalty != 1.0:
            logits = self._penalize(logits)
        if self._grammar is not None:
            logits = mask_logits(logits, self._grammar)
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
