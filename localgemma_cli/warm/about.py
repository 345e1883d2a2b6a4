"""What a process that keeps a model says about itself: plain data, which goes through `wire.py`."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EngineAbout:
    """As `ChatEngine` has it; `run` has the fields of `RunInfo`."""

    model: str
    label: str
    introduction: str
    warnings: tuple[str, ...]
    reasons: tuple[str, ...]
    run: Any


@dataclass(frozen=True)
class BackendAbout:
    """As `Backend` has it."""

    name: str
    note: str | None
    continues: bool
    context_length: int | None


@dataclass(frozen=True)
class KeptStatus:
    """A row of `localgemma ps`; memory in bytes, with that of llama.cpp's process."""

    model: str
    preset: str
    device: str
    quantization: str
    dtype: str
    context_length: int
    state: str  # loading, answering, idle
    pid: int
    memory_bytes: int
    idle_seconds_left: float | None  # None while it is in use
    version: str
