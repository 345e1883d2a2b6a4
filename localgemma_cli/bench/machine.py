"""Describe the machine and the versions behind a report."""

import platform
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import psutil  # type: ignore[import-untyped]

from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.host import cpu_flags
from localgemma_cli.units import format_bytes

_PACKAGES = ("localgemma-cli", "torch", "transformers", "bitsandbytes", "xllamacpp")
# What decides which products this program, PyTorch and llama.cpp use: as /proc/cpuinfo and as people name it.
_FEATURES = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX",
    "asimddp": "DotProd",
    "i8mm": "I8MM",
    "bf16": "BF16",
}


@dataclass(frozen=True)
class Machine:
    device: str
    name: str
    features: tuple[str, ...]
    cores: int
    memory_bytes: int
    bandwidth_bytes_per_second: float
    system: str
    versions: dict[str, str]

    def line(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        features = f" ({', '.join(self.features)})" if self.features else ""
        return (
            f"{self.device}: {self.name}{features}, {self.cores} cores, {format_bytes(self.memory_bytes)},"
            f" {format_bytes(self.bandwidth_bytes_per_second)}/s\n{versions}; {self.system}"
        )


def describe_machine(hardware: Hardware, bandwidth: float) -> Machine:
    return Machine(
        device=hardware.device,
        name=hardware.name,
        features=name_features(cpu_flags() or ()) if hardware.device == "cpu" else (),
        cores=_cores(),
        memory_bytes=hardware.device_memory_total,
        bandwidth_bytes_per_second=bandwidth,
        system=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        versions={name: number for name in _PACKAGES if (number := _version(name))},
    )


def name_features(flags: Collection[str]) -> tuple[str, ...]:
    """The features of a processor that decide how fast a model runs, of its flags."""
    return tuple(name for flag, name in _FEATURES.items() if flag in flags)


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
