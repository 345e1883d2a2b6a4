"""Prefill and decode: token ids in, one sampled id after the other out."""

from collections.abc import Generator, Iterator, Sequence
from threading import Event as Cancel

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from localgemma_cli.backends.pytorch.generation.cuda_graph import (
    BackgroundCompiler,
    RecordedStep,
    Step,
    recorder,
    unrecorded,
)
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.generation.prompt_lookup import Guesses
from localgemma_cli.events import Reading
from localgemma_cli.planning.memory import PREFILL_CHUNK
from localgemma_cli.sampling import Sampling


def forward(model: PreTrainedModel, tokens: torch.Tensor, cache: Cache, keep: int = 1) -> torch.Tensor:
    """Run `tokens` [1, n] on top of `cache`; logits of the last `keep`, [keep, vocabulary], float32."""
    output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=keep)
    logits: torch.Tensor = output.logits[0, -keep:].float()
    return logits


def make_step(model: PreTrainedModel, compile_mode: str) -> Step:
    """The one-token step as the plan's `compile` says; anything but "none" needs a preallocated cache."""

    def step(token: torch.Tensor, cache: Cache) -> torch.Tensor:
        return forward(model, token, cache)

    if compile_mode == "none" or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return step
    compiler = None if compile_mode == "graph" else BackgroundCompiler(step)
    return RecordedStep(step, unrecorded if compile_mode == "default" else recorder(model.device), compiler)


class Sampler:
    """Logits [1, vocabulary] to the next id [1], on the device, by transformers' processors in its order."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._device, self._penalty = device, sampling.repetition_penalty
        self._said: torch.Tensor | None = None  # [1, vocabulary], whether an id was in prompt or answer
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
        """What was said before the answer; each sampled id is remembered by itself."""
        self._prompt, self._said = prompt, None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if self._penalty != 1.0:
            logits = self._penalized(logits)
        scores = self._processors(None, logits)
        if self._greedy:
            token: torch.Tensor = scores.argmax(dim=-1)
        else:
            token = torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=self._generator)[0]
        if self._said is not None:
            self._said.index_fill_(1, token, True)
        return token

    def _penalized(self, logits: torch.Tensor) -> torch.Tensor:
        """As transformers' RepetitionPenaltyLogitsProcessor, whose cost grows with the answer."""
        if self._said is None:
            self._said = torch.zeros_like(logits, dtype=torch.bool)
            self._said[:, torch.tensor(self._prompt, dtype=torch.int64, device=self._device)] = True
        penalized = torch.where(logits < 0, logits * self._penalty, logits / self._penalty)
        return torch.where(self._said, penalized, logits)


def make_sampler(sampling: Sampling, device: torch.device) -> Sampler:
    return Sampler(sampling, device)


class _ReadBack:
    """An id on its way to the host; one at a time. `read` waits for no more than that id."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._token = torch.empty(0)
        if device.type == "cuda":
            self._pinned = torch.empty(1, dtype=torch.int64, pin_memory=True)
            self._copied = torch.cuda.Event(blocking=True)

    def start(self, token: torch.Tensor) -> None:
        self._token = token
        if self._device.type == "cuda":
            self._pinned.copy_(token, non_blocking=True)
            self._copied.record()

    def read(self) -> int:
        if self._device.type != "cuda":
            return int(self._token)
        self._copied.synchronize()
        return int(self._pinned)


def prefill(
    model: PreTrainedModel, kv: KVCache, prompt: Sequence[int], device: torch.device, cancel: Cancel
) -> torch.Tensor | None:
    """Compute what of `prompt` is not in `kv`; the last token's logits, or None where `cancel` came first."""
    reading = read(model, kv, prompt, device, cancel)
    while True:
        try:
            next(reading)
        except StopIteration as done:
            logits: torch.Tensor | None = done.value
            return logits


def read(
    model: PreTrainedModel, kv: KVCache, prompt: Sequence[int], device: torch.device, cancel: Cancel
) -> Generator[Reading, None, torch.Tensor | None]:
    """`prefill`, telling before each piece how far it is."""
    logits = None
    kv.expect(len(prompt))
    for start in range(len(kv.tokens), len(prompt), PREFILL_CHUNK):
        if cancel.is_set():
            return None
        yield Reading(start, len(prompt))
        chunk = prompt[start : start + PREFILL_CHUNK]
        with kv.appending(chunk) as cache:
            logits = forward(model, torch.tensor([chunk], device=device), cache)
    return logits


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    step: Step,
    kv: KVCache,
    prompt: Sequence[int],
    sampler: Sampler,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    cancel: Cancel,
    guesses: Guesses | None = None,
    lag: bool | None = None,
) -> Generator[Reading | int]:
    """Ids up to and including a stop id, at most `max_new_tokens`; on `cancel` ends between two tokens.

    Before them, how far it has read `prompt`. With `lag` (the default on CUDA) a step is launched before its
    token has been read, so that the device does not wait for the host; `kv` then holds a last token that
    nothing followed. Guesses are made from tokens that are known, so with `guesses` there is none.
    """
    device: torch.device = model.device
    sampler.begin(prompt)
    rows = yield from read(model, kv, prompt, device, cancel)
    if rows is None or cancel.is_set():
        return
    if guesses is not None:
        yield from _guessed(model, step, kv, rows, prompt, sampler, stop_ids, max_new_tokens, cancel, guesses)
        return
    lag = device.type == "cuda" if lag is None else lag
    for token in _plain(step, kv, rows, sampler, max_new_tokens, lag):
        yield token
        if token in stop_ids or cancel.is_set():
            return


def _plain(
    step: Step, kv: KVCache, logits: torch.Tensor, sampler: Sampler, count: int, lag: bool
) -> Iterator[int]:
    """`count` ids; `kv` holds those that it was fed, also where nobody asks for the next."""
    reading = _ReadBack(logits.device)
    try:
        for left in reversed(range(count)):
            token = sampler(logits)
            reading.start(token)
            ahead = lag and 0 < left < count - 1  # the first token is not made to wait for a recording
            if ahead:
                with kv.feeding(1) as cache:
                    logits = step(token[None], cache)
            read = reading.read()
            if ahead:
                kv.tokens.append(read)
            yield read
            if left and not ahead:
                with kv.appending([read]) as cache:
                    logits = step(token[None], cache)
    finally:
        kv.keep(len(kv.tokens))  # an interrupt may come between a step and the reading of its token


def _guessed(
    model: PreTrainedModel,
    step: Step,
    kv: KVCache,
    rows: torch.Tensor,
    prompt: Sequence[int],
    sampler: Sampler,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    cancel: Cancel,
    guesses: Guesses,
) -> Iterator[int]:
    """Each row of a forward over guesses gives a token; the first one not guessed ends the round."""
    history, longest = list(prompt), len(prompt) + max_new_tokens
    guess: list[int] = []
    while True:
        for right, row in enumerate(rows):
            if cancel.is_set():
                return
            token = int(sampler(row[None]))
            yield token
            history.append(token)
            if token in stop_ids or len(history) == longest or cancel.is_set():
                return
            if guess[right : right + 1] != [token]:
                break
        kv.keep(len(history) - 1)
        if guess:
            guesses.accepted(right, len(history))
        guess = guesses.propose(history)[: longest - len(history) - 1]
        with kv.appending([token, *guess]) as cache:
            fed = torch.tensor([[token, *guess]], device=rows.device)
            rows = forward(model, fed, cache, len(guess) + 1) if guess else step(fed, cache)
