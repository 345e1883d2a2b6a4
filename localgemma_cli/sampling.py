"""How an answer is sampled: the values behind `--mode` and the sampling options."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from localgemma_cli.documents import shown
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


# Scores are divided by the temperature and by the penalty, in float32: beyond these, nothing is left of them.
_RANGES: Mapping[str, tuple[float, float, str]] = {
    "temperature": (0.001, 1000, "from 0.001 to 1000, or 0 (greedy)"),
    "top_p": (1e-6, 1, "from 0.000001 to 1"),
    "top_k": (1, 10_000_000, ""),
    "min_p": (0, 1, ""),
    "repetition_penalty": (0.01, 100, "from 0.01 to 100 (1 is off)"),
    "max_new_tokens": (1, 1_000_000_000, ""),
    "seed": (0, 2**63 - 1, "from 0 to 2**63 - 1"),
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
    for name, (least, most, words) in _RANGES.items():
        value = getattr(sampling, name)
        if not (value is None or least <= value <= most or (name == "temperature" and value == 0)):
            option = f"--{name.replace('_', '-')}"  # `nan` fails every comparison, so it ends here too
            raise UsageError(
                f"{option} is out of range (got {shown(value)}).",
                f"Give a value {words or f'from {least} to {most}'}.",
            )
    return sampling


def system_for(mode: Mode, system: str | None) -> str | None:
    """The user's system text with the mode's instruction after it."""
    parts = [part for part in (system and system.strip(), MODE_INSTRUCTION[mode]) if part]
    return "\n\n".join(parts) or None
