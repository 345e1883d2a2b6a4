"""Prefill and decode: computes the prompt, then yields one sampled token id after the other."""

from collections.abc import Generator, Iterator, Sequence
from threading import Event as Cancel

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from localgemma_cli.backends.pytorch.generation.cpu_step import CpuStep
from localgemma_cli.backends.pytorch.generation.cpu_step_support import make_cpu_step
from localgemma_cli.backends.pytorch.generation.cuda_graph import (
    BackgroundCompiler,
    RecordedStep,
    Step,
    recorder_for,
    unrecorded,
)
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.generation.prompt_lookup import Guesses
from localgemma_cli.backends.pytorch.generation.row_step import RowStep
from localgemma_cli.backends.pytorch.generation.sampler import Sampler
from localgemma_cli.events import Reading
from localgemma_cli.planning.memory import PREFILL_CHUNK


def forward(model: PreTrainedModel, tokens: torch.Tensor, cache: Cache, keep: int = 1) -> torch.Tensor:
    """Run `tokens` [1, n] after those in `cache`; logits of the last `keep`, [keep, vocabulary] float32."""
    output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=keep)
    logits: torch.Tensor = output.logits[0, -keep:].float()
    return logits


def make_step(model: PreTrainedModel, compile_mode: str) -> Step:
    """The one-token step for the plan's `compile`; all modes except "none" need a preallocated cache."""

    def step(tokens: torch.Tensor, cache: Cache) -> torch.Tensor:
        return forward(model, tokens, cache, tokens.shape[1])

    if compile_mode == "none" and model.device.type == "cpu":
        return make_cpu_step(model, step)
    if compile_mode == "none" or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return step
    compiler = None if compile_mode == "graph" else BackgroundCompiler(step)
    return RecordedStep(
        step, unrecorded if compile_mode == "default" else recorder_for(model.device), compiler
    )


class _ReadBack:
    """Copies a token id to the host, one at a time. `read` waits for that copy, not for later work."""

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
    """Compute the part of `prompt` that is not in `kv`.

    The last token's logits [1, vocabulary], or None where `cancel` was set first.
    """
    chunks = prefill_in_chunks(model, kv, prompt, device, cancel)
    while True:
        try:
            next(chunks)
        except StopIteration as done:
            logits: torch.Tensor | None = done.value
            return logits


def prefill_in_chunks(
    model: PreTrainedModel, kv: KVCache, prompt: Sequence[int], device: torch.device, cancel: Cancel
) -> Generator[Reading, None, torch.Tensor | None]:
    """Run `prefill`, and yield its progress before each chunk."""
    logits = None
    kv.reserve(len(prompt))
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
    step: Step | RowStep,
    kv: KVCache,
    prompt: Sequence[int],
    sampler: Sampler,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    cancel: Cancel,
    guesses: Guesses | None = None,
    lag: bool | None = None,
) -> Generator[Reading | int]:
    """Yield the progress of the prefill, then ids up to and including a stop id, at most `max_new_tokens`.

    An answer with a grammar also ends where it is complete, without a stop id.

    `cancel` ends it between two tokens. With `lag` (the default on CUDA) the next step is launched before the
    current id is read back, so that the device does not wait for the host; `kv` may then have one more token
    than was yielded. `guesses` need known ids, so there is no lag with them. With a `RowStep`, which has
    neither, `WAITING` is among the ids.
    """
    device: torch.device = model.device
    sampler.begin(prompt)
    rows = yield from prefill_in_chunks(model, kv, prompt, device, cancel)
    if rows is None or cancel.is_set():
        return
    tokens: Iterator[Reading | int]
    if isinstance(step, RowStep):
        tokens = _decode_row(step, kv, rows, sampler, max_new_tokens)
    elif guesses is not None:
        yield from _decode_with_guesses(
            model, step, kv, rows, prompt, sampler, stop_ids, max_new_tokens, cancel, guesses
        )
        return
    else:
        tokens = _decode(
            step, kv, rows, sampler, max_new_tokens, device.type == "cuda" if lag is None else lag
        )
    for token in tokens:
        yield token
        if token in stop_ids or cancel.is_set() or sampler.is_complete:
            return


def _decode_row(
    step: RowStep, kv: KVCache, logits: torch.Tensor, sampler: Sampler, count: int
) -> Iterator[Reading | int]:
    for left in reversed(range(count)):
        token = int(sampler(logits))
        sampler.accept(token)
        yield token
        if left:
            with kv.appending([token]) as cache:
                logits = yield from step.compute(token, cache)


def _decode(
    step: Step, kv: KVCache, logits: torch.Tensor, sampler: Sampler, count: int, lag: bool
) -> Iterator[int]:
    """Yield `count` ids. `kv` stays consistent where the caller stops early."""
    reading = _ReadBack(logits.device)
    try:
        for left in reversed(range(count)):
            token = sampler(logits)
            reading.start(token)
            ahead = (
                lag and 0 < left < count - 1
            )  # not before the first token, which would wait for the recording
            if ahead:
                with kv.feeding(1) as cache:
                    logits = step(token[None], cache)
            read = reading.read()
            sampler.accept(read)  # while the device computes the step
            if ahead:
                kv.tokens.append(read)
            yield read
            if left and not ahead:
                with kv.appending([read]) as cache:
                    logits = step(token[None], cache)
    finally:
        kv.truncate(len(kv.tokens))  # drop a step that was launched and whose id was not read


def _decode_with_guesses(
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
    """Sample a token from each row of a forward over guesses, up to the first that differs from its guess."""
    history, longest = list(prompt), len(prompt) + max_new_tokens
    guess: list[int] = []
    while True:
        for right, row in enumerate(rows):
            if cancel.is_set():
                return
            token = int(sampler(row[None]))
            sampler.accept(token)
            yield token
            history.append(token)
            if token in stop_ids or len(history) == longest or cancel.is_set() or sampler.is_complete:
                return
            if guess[right : right + 1] != [token]:
                break
        kv.truncate(len(history) - 1)
        if guess:
            guesses.report(right, len(history))
        guess = guesses.propose(history)[: longest - len(history) - 1]
        with kv.appending([token, *guess]) as cache:
            fed = torch.tensor([[token, *guess]], device=rows.device)
            several = not guess or isinstance(step, CpuStep)
            rows = step(fed, cache) if several else forward(model, fed, cache, len(guess) + 1)
