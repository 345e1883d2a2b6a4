"""The events of an answer and of a load, and the meter that times an answer."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from localgemma_cli.conversation import FinishReason
from localgemma_cli.errors import LocalGemmaError


@dataclass(frozen=True)
class Usage:
    """Token counts; None if the server does not report them."""

    prompt_tokens: int | None
    cached_prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds. The decode rate excludes the first token; None if the tokens were not counted,
    or if there are fewer than two.
    """

    time_to_first_token_seconds: float
    decode_tokens_per_second: float | None
    total_seconds: float


class RateMeter:
    """Times the tokens of one answer, starting when it is created."""

    def __init__(self) -> None:
        self._started = self._first = self._last = time.perf_counter()
        self.ticks = 0

    def tick(self) -> None:
        """Note that a token, or a piece of text, has arrived now."""
        self._last = time.perf_counter()
        if not self.ticks:
            self._first = self._last
        self.ticks += 1

    def timing(self, tokens: int | None) -> Timing:
        """The timing of an answer of that many tokens; None if they were not counted."""
        seconds = self._last - self._first
        rate = (tokens - 1) / seconds if tokens and tokens > 1 and seconds else None
        return Timing(self._first - self._started, rate, time.perf_counter() - self._started)


@dataclass(frozen=True)
class Delta:
    """The next whole characters of the answer."""

    text: str


@dataclass(frozen=True)
class Thinking:
    """The next characters of the model's thinking, which is shown but is not part of the answer."""

    text: str


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability under the model, before temperature and filters.

    `token` is its text, with U+FFFD for an incomplete character; `bytes` is the text in UTF-8. `id` and
    `bytes` are None where a server does not report them. `top_logprobs`: the likeliest tokens there,
    the likeliest first; without any of their own.
    """

    token: str
    logprob: float
    id: int | None = None
    bytes: tuple[int, ...] | None = None
    top_logprobs: "tuple[TokenLogprob, ...]" = ()


@dataclass(frozen=True)
class Finished:
    """The last event of every answer, including interrupted ones. `token_ids` excludes the stop token.

    `error` is set if the finish reason is "error". `choices`: the probability of each choice, if the answer
    had to be one of them and the engine reports it. `logprobs` has an entry for each of `token_ids`; None
    where they were not asked for, or a server does not report them.
    """

    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    token_ids: tuple[int, ...] | None = None
    error: LocalGemmaError | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    choices: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Reading:
    """How many tokens of the prompt have been processed; comes before the first delta."""

    done: int
    total: int


Event = Reading | Delta | Thinking | Finished


@dataclass(frozen=True)
class LoadProgress:
    """Progress of a download or load; `total` is None if unknown."""

    stage: str
    done: int = 0
    total: int | None = None
    unit: Literal["bytes", "modules", "tensors", "tokens"] = "bytes"


ProgressSink = Callable[[LoadProgress], None]
