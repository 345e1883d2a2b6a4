"""Sampling parameters: the values behind `--mode` and the sampling options, and their ranges."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from localgemma_cli.constraint import Choices, Constraint
from localgemma_cli.documents import format_value
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
    """Sampling parameters: `temperature` 0 is greedy, None turns a filter off.

    `max_new_tokens` None fills the context. `logprobs` asks for the log-probability of each token, and for
    those of so many likeliest tokens at each position. `constraint`: what the answer must be.
    """

    temperature: float = 0.7
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int | None = None
    logprobs: int | None = None
    constraint: Constraint | None = None


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


# Lowest and highest value, how a message names them, and a hint. Scores are divided by the temperature and
# the penalty in float32: outside these ranges they overflow or underflow.
_RANGES: Mapping[str, tuple[float, float, str, str]] = {
    "temperature": (0.001, 1000, "between 0.001 and 1000, or 0", "0 always picks the likeliest token."),
    "top_p": (1e-6, 1, "between 0.000001 and 1", "1 turns it off."),
    "top_k": (1, 10_000_000, "between 1 and 10000000", "Remove it to sample from all tokens."),
    "min_p": (0, 1, "between 0 and 1", "0 turns it off."),
    "repetition_penalty": (0.01, 100, "between 0.01 and 100", "1 turns it off."),
    "max_new_tokens": (1, 1_000_000_000, "between 1 and 1000000000", "Remove it to fill the context."),
    "logprobs": (0, 20, "between 0 and 20", "0 reports only the tokens of the answer."),
    "seed": (0, 2**63 - 1, "between 0 and 2**63 - 1", "Remove it for a random seed."),
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
    logprobs: int | None = None,
    constraint: Constraint | None = None,
) -> Sampling:
    """The mode's values, overridden by the model's `defaults` and then by the user's options.

    `defaults` apply to the chat mode only. A choice is the likeliest one unless the user sets a temperature.
    Raises UsageError for a value out of range.
    """
    base = MODE_SAMPLING[mode]
    if mode is Mode.CHAT:
        base = replace(base, **(defaults or {}))
    if isinstance(constraint, Choices):
        base = replace(base, temperature=0)
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "logprobs": logprobs,
        "constraint": constraint,
    }
    return validate_sampling(
        replace(base, **{name: value for name, value in options.items() if value is not None})
    )


def validate_sampling(sampling: Sampling, prefix: str = "--") -> Sampling:
    """Return `sampling`, or raise UsageError for a value out of range.

    It names an option; the field itself where `prefix` is empty.
    """
    for name, (least, most, range_text, hint) in _RANGES.items():
        value = getattr(sampling, name)
        if not (value is None or least <= value <= most or (name == "temperature" and value == 0)):
            option = f"{prefix}{name.replace('_', '-')}" if prefix else name
            # `nan` fails every comparison, so it ends here too
            raise UsageError(f"{option} must be {range_text} (got {format_value(value)}).", hint)
    return sampling


def system_for(mode: Mode, system: str | None) -> str | None:
    """The user's system text followed by the mode's instruction."""
    parts = [part for part in (system and system.strip(), MODE_INSTRUCTION[mode]) if part]
    return "\n\n".join(parts) or None
