"""How an answer is sampled: the values behind `--mode` and the sampling options."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from localgemma_cli.errors import UsageError


class Mode(StrEnum):
    CHAT = "chat"
    FACTUAL = "factual"
    CREATIVE = "creative"


class OnOverflow(StrEnum):
    TRIM = "trim"
    SUMMARIZE = "summarize"
    ERROR = "error"


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; None is off; no `max_new_tokens` means what the context has room for."""

    temperature: float = 0.7
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int | None = None


MODE_SAMPLING = {
    Mode.CHAT: Sampling(),
    Mode.FACTUAL: Sampling(temperature=0.3, repetition_penalty=1.2),
    Mode.CREATIVE: Sampling(temperature=1.5, min_p=0.08),
}

MODE_INSTRUCTION = {
    Mode.CHAT: None,
    Mode.FACTUAL: "Answer in a short and factual way.",
    Mode.CREATIVE: "Write fluently and creatively, in rich language.",
}


def sampling_for(
    mode: Mode,
    defaults: Mapping[str, Any] | None = None,
    *,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    max_new_tokens: int | None = None,
) -> Sampling:
    """The mode's values with the model's `defaults` and the user's own on top; UsageError out of range.

    `defaults` are for the ordinary mode: one that was asked for says itself how to sample.
    """
    base = MODE_SAMPLING[mode]
    if mode is Mode.CHAT:
        base = replace(base, **(defaults or {}))
    asked: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
    }
    return checked(replace(base, **{name: value for name, value in asked.items() if value is not None}))


def checked(sampling: Sampling) -> Sampling:
    """The same; UsageError for a value out of range."""
    _check("--temperature", sampling.temperature >= 0, "0 (greedy) or more")
    _check("--top-p", sampling.top_p is None or 0 < sampling.top_p <= 1, "above 0 and at most 1")
    _check("--top-k", sampling.top_k is None or sampling.top_k >= 1, "1 or more")
    _check("--min-p", sampling.min_p is None or 0 <= sampling.min_p <= 1, "from 0 to 1")
    _check("--repetition-penalty", sampling.repetition_penalty > 0, "above 0 (1 is off)")
    _check("--max-new-tokens", sampling.max_new_tokens is None or sampling.max_new_tokens >= 1, "1 or more")
    _check("--seed", sampling.seed is None or 0 <= sampling.seed < 2**63, "from 0 to 2**63 - 1")
    return sampling


def system_for(mode: Mode, system: str | None) -> str | None:
    """The user's system text with the mode's instruction after it."""
    parts = [part for part in (system and system.strip(), MODE_INSTRUCTION[mode]) if part]
    return "\n\n".join(parts) or None


def _check(option: str, holds: bool, allowed: str) -> None:
    if not holds:  # `nan` fails every comparison, so it ends here too
        raise UsageError(f"{option} is out of range.", f"Give a value {allowed}.")
