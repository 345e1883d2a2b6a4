"""Measure the bandwidth of a device's memory."""

import time
from collections.abc import Callable

import psutil  # type: ignore[import-untyped]
import torch

from localgemma_cli.bench.gauges import synchronise

_READ_BYTES = 4 << 30  # a hundred times any cache
_COPY_BYTES = 2 << 30
_ROUNDS = 6


def measure(device: str, most: int | None = None) -> float:
    """Bytes per second, the best of several rounds: sums by all threads on a CPU, else copies.

    A decode step mostly reads; a GPU's copy counts the bytes of both directions.
    """
    if device == "cpu":
        size = min(_READ_BYTES, psutil.virtual_memory().available // 4, most or _READ_BYTES)
        return _read(size)
    return _copy(torch.device(device), min(_COPY_BYTES, most or _COPY_BYTES))


def _read(size: int) -> float:
    numbers = torch.ones(size // 4, dtype=torch.float32)  # ones, not empty: the pages must exist
    return max(numbers.nbytes / _seconds(numbers.device, numbers.sum) for _ in range(_ROUNDS))


def _copy(device: torch.device, size: int) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return max(2 * size / _seconds(device, lambda: target.copy_(source)) for _ in range(_ROUNDS))


def _seconds(device: torch.device, run: Callable[[], object]) -> float:
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started
