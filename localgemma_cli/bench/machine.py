"""Describe the machine and the versions behind a report."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import psutil  # type: ignore[import-untyped]

from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.units import format_bytes

_PACKAGES = ("localgemma-cli", "torch", "transformers", "bitsandbytes", "llama-cpp-python")


@dataclass(frozen=True)
class Machine:
    device: str
    name: str
    cores: int
    memory_bytes: int
    bandwidth_bytes_per_second: float
    system: str
    versions: dict[str, str]

    def line(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.device}: {self.name}, {self.cores} cores, {format_bytes(self.memory_bytes)},"
            f" {format_bytes(self.bandwidth_bytes_per_second)}/s\n{versions}; {self.system}"
        )


def describe_machine(hardware: Hardware, bandwidth: float) -> Machine:
    return Machine(
        device=hardware.device,
        name=hardware.name,
        cores=_cores(),
        memory_bytes=hardware.device_memory_total,
        bandwidth_bytes_per_second=bandwidth,
        system=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        versions={name: number for name in _PACKAGES if (number := _version(name))},
    )


def _cores() -> int:
    """Physical cores that this process may use; a container or `taskset` may allow fewer."""
    physical: int = psutil.cpu_count(logical=False) or 1
    process = psutil.Process()
    return min(physical, len(process.cpu_affinity())) if hasattr(process, "cpu_affinity") else physical


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
