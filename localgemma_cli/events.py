"""What a backend says while it answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from localgemma_cli.conversation import FinishReason
from localgemma_cli.errors import LocalGemmaError


@dataclass(frozen=True)
class Usage:
    """None where a server does not say."""

    prompt_tokens: int | None
    cached_prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class Timing:
    """Seconds of wall clock; the decode rate counts the tokens after the first, None where nobody counted."""

    time_to_first_token_seconds: float
    decode_tokens_per_second: float | None
    total_seconds: float


@dataclass(frozen=True)
class Delta:
    """The next whole characters of the answer."""

    text: str


@dataclass(frozen=True)
class Thinking:
    """The next characters of what a model thinks before it answers: to be seen, but no part of the answer."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The last event of every answer, interrupted ones included; `token_ids` excludes the stop token.

    `error` is what cut the answer off, where the finish reason is "error".
    """

    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    token_ids: tuple[int, ...] | None = None
    error: LocalGemmaError | None = None


@dataclass(frozen=True)
class Reading:
    """How much of the prompt has been read, in tokens; before the first delta."""

    done: int
    total: int


Event = Reading | Delta | Thinking | Finished


@dataclass(frozen=True)
class LoadProgress:
    """How far download and load are; `total` is None where nobody knows it."""

    stage: str
    done: int = 0
    total: int | None = None
    unit: Literal["bytes", "tensors", "tokens"] = "bytes"


ProgressSink = Callable[[LoadProgress], None]
