"""What is measured, and what came out: values that travel between processes."""

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
    """`CHAT_TURNS` turns; the last asks `question_tokens` on top of about `history_tokens`."""

    history_tokens: int
    question_tokens: int
    answer_tokens: int

    @property
    def context(self) -> int:
        return self.history_tokens + self.question_tokens + self.answer_tokens


@dataclass(frozen=True)
class Job:
    """One row; `weights` is a folder or a GGUF file, None: random weights made in memory.

    Without workloads nothing but the load is measured.
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
    """The most memory since the last reset: resident on the host, allocated on a device that can tell."""

    host_bytes: int
    device_bytes: int | None


@dataclass(frozen=True)
class Loaded:
    """Seconds from a process with its libraries imported to a model that can answer.

    The peaks last until it has answered once, because mapped weights are read no sooner.
    """

    seconds: float
    peaks: Peaks
    weights_bytes: int


@dataclass(frozen=True)
class Answered:
    """Medians over the repeats; `token_ids` are the first repeat's.

    `margins` is what the likeliest token's logit had over the next, per token; empty where it is not known.
    """

    workload: Workload
    first_token_seconds: float
    decode_tokens_per_second: float
    token_ids: tuple[int, ...]
    peaks: Peaks
    margins: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chatted:
    """The first token of a chat's last turn, beside that of as long a prompt on an empty cache."""

    prompt_tokens: int
    cached_prompt_tokens: int
    first_token_seconds: float
    full_prefill_seconds: float


@dataclass(frozen=True)
class Outcome:
    """`read_bytes`: of the weights, per decoded token. The stream's cost is from an id to flushed text."""

    loaded: Loaded
    read_bytes: int
    answered: tuple[Answered, ...] = ()
    chatted: Chatted | None = None
    stream_seconds_per_token: float | None = None
