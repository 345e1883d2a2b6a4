"""Time the answers of a backend, through the interface that a chat uses."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from threading import Event as Cancel
from threading import Thread

from localgemma_cli.backends.base import Backend
from localgemma_cli.bench.job import CHAT_TURNS, AnswerResult, ChatResult, ChatWorkload, Job, Peaks, Workload
from localgemma_cli.bench.other_programs import others_share, read_processor_times
from localgemma_cli.bench.prompts import prompt_ids, random_ids
from localgemma_cli.conversation import Message
from localgemma_cli.events import Finished
from localgemma_cli.prompts.detokenizer import Detokenizer
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.tokenizer import Tokenizer
from localgemma_cli.render.plain import PlainRenderer
from localgemma_cli.sampling import Sampling

_STREAM_TOKENS = 2000


class IdPrompter(Prompter):
    """Takes each message's own ids, and never stops early: every run has the requested length."""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        return [token for message in messages for token in message.token_ids or ()]

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        return frozenset()

    @property
    def stops(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class Gauges:
    """What a device needs around a measurement: waiting for its work, and its memory's peaks."""

    synchronise: Callable[[], None]
    reset_peaks: Callable[[], None]
    peaks: Callable[[], Peaks]


class TimedBackend:
    """One loaded model; its prompts share no prefix, so that the cache never helps."""

    def __init__(self, backend: Backend, job: Job, gauges: Gauges) -> None:
        self._backend, self._job, self._gauges = backend, job, gauges
        self._vocabulary = job.plan.model.architecture.vocabulary

    def answer(self, workload: Workload) -> AnswerResult:
        self._gauges.reset_peaks()
        processor = read_processor_times()
        runs = [self.run(workload, repeat) for repeat in range(self._job.repeats)]
        return AnswerResult(
            workload=workload,
            first_token_seconds=median(first for _, first, _ in runs),
            decode_tokens_per_second=median(
                (workload.new_tokens - 1) / (total - first) for _, first, total in runs
            ),
            token_ids=runs[0][0].token_ids or (),
            peaks=self._gauges.peaks(),
            others_share=others_share(processor, read_processor_times()),
        )

    def run(self, workload: Workload, repeat: int) -> tuple[Finished, float, float]:
        """One answer to a random prompt, timed as in `_time`."""
        ids = prompt_ids(self._vocabulary, workload, self._job.seed, repeat)
        return self._time(Message("user", "", ids), workload.new_tokens)

    def chat(self, chat: ChatWorkload) -> ChatResult:
        """Time the last turn with several questions, each after rolling the cache back to the history."""
        earlier = CHAT_TURNS - 1
        asked = max(1, chat.history_tokens // earlier - chat.answer_tokens)
        history: tuple[Message, ...] = ()
        for turn in range(earlier):
            history += (self._message(asked, f"turn {turn}"),)
            finished, _, _ = self._time(history, chat.answer_tokens)
            history += (Message("assistant", "", finished.token_ids),)
        lasts = [
            self._time((*history, self._message(chat.question_tokens, f"last {repeat}")), 2)
            for repeat in range(self._job.repeats)
        ]
        usage = lasts[0][0].usage
        prompt_tokens = usage.prompt_tokens or 0  # a local model always counts
        _, full, _ = self._time(self._message(prompt_tokens, "full"), 2)
        return ChatResult(
            prompt_tokens,
            usage.cached_prompt_tokens or 0,
            median(first for _, first, _ in lasts),
            full,
        )

    def _message(self, tokens: int, name: object) -> Message:
        return Message("user", "", random_ids(self._vocabulary, tokens, self._job.seed, name))

    def _time(
        self, messages: Message | tuple[Message, ...], new_tokens: int
    ) -> tuple[Finished, float, float]:
        """A greedy answer, and the seconds to its first token and to its end."""
        sampling = Sampling(temperature=0, max_new_tokens=new_tokens)
        self._gauges.synchronise()
        started = time.perf_counter()
        asked = (messages,) if isinstance(messages, Message) else messages
        *_, finished = self._backend.stream(asked, sampling, Cancel())
        self._gauges.synchronise()
        total = time.perf_counter() - started
        assert isinstance(finished, Finished)  # a stream always ends with one
        assert finished.finish_reason == "length", f"the answer ended: {finished}"
        return finished, finished.timing.time_to_first_token_seconds, total


def stream_cost(tokenizer: Tokenizer) -> float:
    """Seconds per token from an id to text flushed into a pipe, averaged over a long answer."""
    size = min(tokenizer.size, 256_000)
    ids = random_ids(size, _STREAM_TOKENS, 0, "stream")
    read_end, write_end = os.pipe()
    drain = Thread(target=_drain, args=(read_end,), daemon=True)
    drain.start()
    with open(write_end, "w", encoding="utf-8") as pipe:
        detokenizer, renderer = Detokenizer(tokenizer), PlainRenderer(pipe)
        started = time.perf_counter()
        for token in ids:
            if text := detokenizer.step(token):
                renderer.delta(text)
        seconds = time.perf_counter() - started
    drain.join()
    return seconds / len(ids)


def _drain(read_end: int) -> None:
    while os.read(read_end, 1 << 16):
        pass
    os.close(read_end)
