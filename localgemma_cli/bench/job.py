"""Jobs and results of a benchmark, as values that one process sends to another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localgemma_cli.planning.load_plan import LoadPlan

Engine = Literal["localgemma", "transformers", "llama.cpp"]
CHAT_TURNS = 6  # the last of them is timed


@dataclass(frozen=True)
class Workload:
    """One answer on an empty cache; lengths in tokens."""

    prompt_tokens: int
    new_tokens: int

    @property
    def context(self) -> int:
        return self.prompt_tokens + self.new_tokens


WARM_UP = Workload(prompt_tokens=16, new_tokens=8)


@dataclass(frozen=True)
class ChatWorkload:
    """A chat of `CHAT_TURNS` turns; the last asks `question_tokens` on top of about `history_tokens`."""

    history_tokens: int
    question_tokens: int
    answer_tokens: int

    @property
    def context(self) -> int:
        return self.history_tokens + self.question_tokens + self.answer_tokens


@dataclass(frozen=True)
class Job:
    """One row; `weights` is a folder or a GGUF file, or None for random weights made in memory.

    Without workloads only the load is measured.
    """

    engine: Engine
    plan: LoadPlan
    weights: Path | None
    tokenizer: Path
    workloads: tuple[Workload, ...] = ()
    chat: ChatWorkload | None = None
    repeats: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Peaks:
    """Peak bytes since the last reset: resident on the host, allocated on a GPU (None without one)."""

    host_bytes: int
    device_bytes: int | None


@dataclass(frozen=True)
class LoadResult:
    """Seconds from imported libraries to a model that can answer.

    The peaks include one short answer, because mapped weights are read only then.
    """

    seconds: float
    peaks: Peaks
    weights_bytes: int


@dataclass(frozen=True)
class AnswerResult:
    """Medians over the repeats; `token_ids` are the first repeat's.

    `margins`: the likeliest logit minus the next one, per token; empty if not measured.
    `others_share`: of the processor's time during the repeats, what other programs used.
    """

    workload: Workload
    first_token_seconds: float
    decode_tokens_per_second: float
    token_ids: tuple[int, ...]
    peaks: Peaks
    margins: tuple[float, ...] = ()
    others_share: float = 0.0


@dataclass(frozen=True)
class ChatResult:
    """The first token of a chat's last turn, and of an equally long prompt on an empty cache."""

    prompt_tokens: int
    cached_prompt_tokens: int
    first_token_seconds: float
    full_prefill_seconds: float


@dataclass(frozen=True)
class JobResult:
    """The results of one job.

    `read_bytes`: of weights, per decoded token. The stream's seconds are from an id to flushed text.
    """

    loaded: LoadResult
    read_bytes: int
    answered: tuple[AnswerResult, ...] = ()
    chatted: ChatResult | None = None
    stream_seconds_per_token: float | None = None
