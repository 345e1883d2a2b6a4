"""The peak of this process's memory on the host."""

import sys
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]


def reset_host_peak() -> None:
    """Start a new peak; outside Linux it stays that of the whole process."""
    if sys.platform == "linux":
        with suppress(OSError):  # a container may forbid it
            Path("/proc/self/clear_refs").write_text("5")


def host_peak() -> int:
    """Bytes; on Linux VmHWM, because ru_maxrss starts with the parent's size there."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS
