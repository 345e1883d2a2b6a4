"""How much of the processor other programs use while this process measures."""

import os
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]

_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # steal: of other virtual machines
_LEAST_SECONDS = 0.1  # the system counts in hundredths of a second


@dataclass(frozen=True)
class ProcessorTimes:
    """Seconds since an unnamed moment, over the processor's cores that this process may use.

    `whole`: all of them; `busy`: of any program; `own`: of this process and those that it started.
    """

    whole: float
    busy: float
    own: float


def read_processor_times() -> ProcessorTimes:
    cores = psutil.cpu_times(percpu=True)
    process = psutil.Process()
    usable = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(len(cores))
    ours = [cores[core] for core in usable if core < len(cores)]
    busy = sum(getattr(core, name, 0.0) for core in ours for name in _BUSY)
    waiting = sum(getattr(core, name, 0.0) for core in ours for name in ("idle", "iowait"))
    return ProcessorTimes(busy + waiting, busy, _own_seconds(process))


def others_share(start: ProcessorTimes, end: ProcessorTimes) -> float:
    """The share of the processor that other programs used between two readings, from 0 to 1."""
    whole = end.whole - start.whole
    if whole < _LEAST_SECONDS:
        return 0.0
    others = (end.busy - start.busy) - (end.own - start.own)
    return min(1.0, max(0.0, others / whole))


def _own_seconds(process: psutil.Process) -> float:
    ended = os.times()  # of this process, and of those that have ended
    seconds = ended.user + ended.system + ended.children_user + ended.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds += times.user + times.system
    return float(seconds)
