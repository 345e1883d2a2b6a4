"""The peak memory on the host, of this process and of those that it started."""

import sys
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from localgemma_cli.bench.job import Peaks


def reset_host_peak() -> None:
    """Start new peaks; outside Linux they stay those since the start of each process."""
    if sys.platform == "linux":
        for process in _processes():
            with suppress(OSError):  # a container may forbid it
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def host_peak() -> int:
    """Bytes: the sum of the processes' peaks."""
    total = 0
    for process in _processes():
        with suppress(OSError, psutil.NoSuchProcess):  # it has ended
            total += _peak(process)
    return total


def llamacpp_peaks() -> Peaks:
    """Peaks without llama.cpp's memory on a GPU, which nothing here can ask for."""
    return Peaks(host_peak(), None)


def _processes() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _peak(process: psutil.Process) -> int:
    """Linux: VmHWM, as ru_maxrss starts with the parent's size there. macOS: of a child its present size."""
    if sys.platform == "linux":
        status = Path(f"/proc/{process.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
    if sys.platform == "win32":
        return int(process.memory_info().peak_wset)
    import resource

    if process.pid != psutil.Process().pid:
        return int(process.memory_info().rss)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS
