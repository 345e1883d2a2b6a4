"""A Gemma in this process, behind the seam of `backends.base`."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event as Cancel

import torch
from transformers import PreTrainedModel

from localgemma_cli.backends.local.decoding import generate, make_sampler, make_step
from localgemma_cli.backends.local.detokenize import Detokenizer
from localgemma_cli.backends.local.kvcache import KVCache
from localgemma_cli.backends.local.loader import load_model, load_tokenizer, out_of_memory
from localgemma_cli.backends.local.prompting import Prompter
from localgemma_cli.backends.local.source import tokenizer_folder
from localgemma_cli.backends.local.speculation import Lookup
from localgemma_cli.conversation import FinishReason, Message
from localgemma_cli.errors import ContextOverflowError
from localgemma_cli.events import Delta, Event, Finished, ProgressSink, Timing, Usage
from localgemma_cli.planning.plan import LoadPlan
from localgemma_cli.sampling import Sampling

_ANSWER_ROOM = 256  # tokens of the context that a prompt must leave free, or a quarter of a small context


class LocalBackend:
    """One loaded model, and the KV cache of the conversation it is having."""

    name = "local"

    def __init__(self, plan: LoadPlan, model: PreTrainedModel, prompter: Prompter) -> None:
        self.plan = plan
        self.context_length = plan.context_length
        self._model, self._prompter = model, prompter
        self._kv = KVCache(model.config, plan.cache, plan.context_length)
        self._step = make_step(model, plan.compile)
        self._stop_ids = prompter.stop_ids | _generation_eos(model)

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """See `Backend.stream`; raises DoesNotFitError as well, where memory runs out in mid-answer."""
        started = time.perf_counter()
        prompt = self._prompter.encode(messages)
        limit = self._room(len(prompt), sampling.max_new_tokens)
        cached = self._kv.reuse(prompt)
        clock = _Clock(started)
        ids: list[int] = []
        finish: FinishReason = "length"
        detokenizer = Detokenizer(self._prompter.tokenizer.backend_tokenizer)
        for token in self._tokens(prompt, sampling, limit, cancel):
            clock.tick()
            if token in self._stop_ids:
                finish = "stop"
                break
            ids.append(token)
            if text := detokenizer.step(token):
                yield Delta(text)
        if finish != "stop" and cancel.is_set():
            finish = "interrupted"
        if rest := detokenizer.flush():
            yield Delta(rest)
        usage = Usage(len(prompt), cached, clock.tokens)
        yield Finished(finish, usage, clock.timing(), tuple(ids))

    def _tokens(self, prompt: list[int], sampling: Sampling, limit: int, cancel: Cancel) -> Iterator[int]:
        sampler = make_sampler(sampling, self._model.device)
        lookup = Lookup() if self.plan.assistant == "lookup" else None
        try:
            yield from generate(
                self._model, self._step, self._kv, prompt, sampler, self._stop_ids, limit, cancel, lookup
            )
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.plan) from error

    def _room(self, prompt_tokens: int, wanted: int | None) -> int:
        """How many tokens the answer may have; ContextOverflowError where that is too few to be one."""
        room = self.context_length - prompt_tokens
        if room < min(wanted or _ANSWER_ROOM, _ANSWER_ROOM, self.context_length // 4):
            raise ContextOverflowError(
                f"The conversation has {prompt_tokens} tokens, and the context of {self.context_length}"
                " must hold the answer as well.",
                "Shorten the prompt, or start anew; --on-overflow trim drops the oldest turns of a chat.",
            )
        return min(wanted, room) if wanted else room


class _Clock:
    """When tokens came."""

    def __init__(self, started: float) -> None:
        self._started = self._first = self._last = started
        self.tokens = 0

    def tick(self) -> None:
        self._last = time.perf_counter()
        if not self.tokens:
            self._first = self._last
        self.tokens += 1

    def timing(self) -> Timing:
        decode_seconds = self._last - self._first
        rate = (self.tokens - 1) / decode_seconds if self.tokens > 1 and decode_seconds else 0.0
        return Timing(self._first - self._started, rate, time.perf_counter() - self._started)


def _generation_eos(model: PreTrainedModel) -> frozenset[int]:
    """What the repository itself lists as ends; some list only `<eos>`, so the prompter adds the turn end."""
    eos = model.generation_config.eos_token_id if model.generation_config else None
    return frozenset(eos if isinstance(eos, list) else [eos] if eos is not None else [])


def load(plan: LoadPlan, folder: Path, progress: ProgressSink, adapter: Path | None = None) -> LocalBackend:
    # The tokenizer first: a folder that cannot chat is refused before the weights.
    prompter = Prompter(load_tokenizer(tokenizer_folder(folder, adapter)))
    return LocalBackend(plan, load_model(plan, folder, progress, adapter), prompter)
