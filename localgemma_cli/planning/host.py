"""Find the machine's memory, free disk space and processor features."""

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

CPU_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86 twice, then 64-bit Arm
EXTENSION_FLAGS = frozenset({"avx2", "fma"})  # the least that the C extension needs
_NO_LIMIT = 1 << 60  # cgroup v1 writes "unlimited" as a number near 2**63


@dataclass(frozen=True)
class HostMemory:
    total: int
    free: int


def host_memory() -> HostMemory:
    """HostMemory in bytes, of the machine or of the container that this process runs in."""
    whole = psutil.virtual_memory()
    system = HostMemory(int(whole.total), int(whole.available))
    confined = _cgroup_memory() or system
    return HostMemory(min(system.total, confined.total), min(system.free, confined.free))


def _cgroup_memory() -> HostMemory | None:
    try:
        membership = Path("/proc/self/cgroup").read_text()
    except OSError:  # not Linux
        return None
    return cgroup_memory(membership, Path("/sys/fs/cgroup"))


def cgroup_memory(membership: str, root: Path) -> HostMemory | None:
    """The lowest limit of this process's cgroup and its parents, v1 or v2; None if there is no limit.

    `membership` is the text of /proc/self/cgroup: lines of `number:controllers:path`, without controllers in
    v2.
    """
    found: list[HostMemory] = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += _limits(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found += _limits(root / "memory", path, *names)
    if not found:
        return None
    return HostMemory(min(each.total for each in found), min(each.free for each in found))


def _limits(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> list[HostMemory]:
    own = root / path.strip("/")
    around = [own, *(each for each in own.parents if each.is_relative_to(root))]
    return [found for folder in around if (found := _limit(folder, limit, usage, reclaimable)) is not None]


def _limit(folder: Path, limit: str, usage: str, reclaimable: str) -> HostMemory | None:
    """One cgroup's limit; file cache that can be reclaimed counts as free."""
    try:
        total = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (
        OSError,
        ValueError,
    ):  # absent in the root cgroup, or not visible in a container
        return None
    if not total.isdecimal() or int(total) >= _NO_LIMIT:
        return None
    return HostMemory(int(total), max(0, int(total) - used + int(stat.get(reclaimable, 0))))


def disk_free(folder: Path) -> int:
    """Free bytes on the disk where `folder` is or would be created."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def cpu_flags() -> frozenset[str] | None:
    """Lower-case feature flags of the processor; None if the system does not list them."""
    if sys.platform == "darwin":
        return _mac_flags()
    try:
        return flags_in(Path("/proc/cpuinfo").read_text())
    except OSError:
        return None


def flags_in(cpuinfo: str) -> frozenset[str]:
    """Flags of the first processor in /proc/cpuinfo, on the line `flags` (x86) or `Features` (Arm)."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _mac_flags() -> frozenset[str]:
    asked = ("sysctl", "-n", "hw.optional.arm.FEAT_BF16")
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    return frozenset({"bf16"}) if answer.stdout.strip() == "1" else frozenset()


def extension_file() -> Path | None:
    """Return the C extension of the PyTorch backend; None if it was not built with the package."""
    folder = Path(__file__).parents[1] / "backends" / "pytorch" / "kernels"
    return next(folder.glob("_products.*"), None)


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def macos_major() -> int:
    """The major release of macOS; 0 on other systems."""
    release = platform.mac_ver()[0]
    return int(release.split(".")[0]) if release else 0
