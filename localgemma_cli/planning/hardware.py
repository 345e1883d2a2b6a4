"""Find the device of this machine that a model would run on, or describe another machine's."""

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from localgemma_cli.environment import hub_cache
from localgemma_cli.errors import UsageError
from localgemma_cli.planning.host import (
    CPU_BF16_FLAGS,
    EXTENSION_FLAGS,
    cpu_flags,
    cpu_name,
    disk_free,
    extension_file,
    host_memory,
    macos_major,
)
from localgemma_cli.planning.nvml import visible_gpus
from localgemma_cli.types import DEVICES, DeviceKind, parse_choice

GIB = 1 << 30
_TOO_MUCH = float(1 << 60)  # bytes; more than any machine has
DeviceMemory = int | tuple[int, ...]  # bytes of every device, or of each one in turn


@dataclass(frozen=True)
class Ability:
    """Whether a device supports something, and why; true or false as a condition."""

    supported: bool
    why: str

    def __bool__(self) -> bool:
        return self.supported


@dataclass(frozen=True)
class GpuMemory:
    """A GPU by its index among the visible ones, with free and total bytes (total 0: unknown)."""

    index: int
    name: str
    free: int
    total: int = 0


@dataclass(frozen=True)
class Hardware:
    """One device and its host; memory in bytes. A CPU or a Mac's GPU shares the host's memory.

    `gpu_count`: how many GPUs are visible; `other_gpus`: those after this one with the same abilities.
    `nf4_kernel`, `int4`: whether a kernel multiplies such weights directly; without one, NF4 is unpacked at
    each step, which is slow. `bf16_widened`: the processor has no bfloat16 instructions, but kernels that
    read bfloat16 weights and multiply in float32. `extension`: whether the package's C
    extension multiplies int4 weights and, if `bf16_widened`, bfloat16 weights.
    """

    device: DeviceKind
    name: str
    device_memory_total: int
    device_memory_free: int
    host_memory_total: int
    host_memory_free: int
    disk_free: int
    bf16: Ability
    nf4: Ability
    int8: Ability
    compute_capability: tuple[int, int] | None = None
    gpu_count: int = 1
    other_gpus: tuple[GpuMemory, ...] = ()
    nf4_kernel: Ability = Ability(True, "")
    int4: Ability = Ability(False, "int4 is CPU-only")
    bf16_widened: bool = False
    extension: Ability = Ability(True, "")
    notes: tuple[str, ...] = ()

    def capped(self, device_memory: DeviceMemory | None, host_memory: int | None) -> "Hardware":
        """The same hardware with no more free memory than these bytes.

        Several device sizes apply to the GPUs in turn; further GPUs are not used.
        """
        host = _least(self.host_memory_free, host_memory)
        if self.device != "cuda":
            device = _least(_least(self.device_memory_free, _single_size(device_memory)), host)
            return replace(self, device_memory_free=device, host_memory_free=host)
        caps = device_memory if isinstance(device_memory, tuple) else (device_memory,) * len(self.gpus)
        pairs = zip(self.gpus, caps, strict=False)
        first, *others = (replace(gpu, free=_least(gpu.free, cap)) for gpu, cap in pairs)
        return replace(self, device_memory_free=first.free, host_memory_free=host, other_gpus=tuple(others))

    def with_margin(self) -> "Hardware":
        """The same hardware with the memory that is usually free, regardless of what other programs use now.

        On a GPU, 9/10 of the total: a desktop and the driver use the rest. On a CPU or a Mac, 3/4 of the
        total: the system and its programs use the rest, and a Mac's GPU cannot use more.
        """
        host = self.host_memory_total * 3 // 4
        if self.device == "cuda":
            others = tuple(replace(gpu, free=gpu.total * 9 // 10 or gpu.free) for gpu in self.other_gpus)
            return replace(
                self,
                device_memory_free=self.device_memory_total * 9 // 10,
                host_memory_free=host,
                other_gpus=others,
            )
        return replace(self, device_memory_free=min(self.device_memory_total, host), host_memory_free=host)

    @property
    def gpus(self) -> tuple[GpuMemory, ...]:
        return (GpuMemory(0, self.name, self.device_memory_free), *self.other_gpus)


def probe(device: str | None = None) -> Hardware:
    """The requested device of this machine, else the best: CUDA, then Apple's GPU, then the CPU."""
    asked = None if device is None else parse_choice(device, DEVICES, "--device")
    cuda, note = _cuda(os.environ) if asked in (None, "cuda") else (None, None)
    if cuda is not None:
        return cuda
    if asked == "cuda":
        raise UsageError(
            note or "No NVIDIA GPU found.",
            "Remove --device. To plan for another machine's GPU, use: localgemma plan --device-memory SIZE",
        )
    if asked in (None, "mps") and _is_apple_silicon():
        return _mps()
    if asked == "mps":
        raise UsageError("--device mps needs a Mac with Apple silicon.", "Remove --device.")
    return _cpu(notes=(note,) if note else ())


def describe_hardware(
    device: str,
    device_memory: DeviceMemory | None,
    host_memory: int | None,
    *,
    compute_capability: tuple[int, int] = (8, 0),
) -> Hardware:
    """The hardware of another machine; what is not given is as on this one. Memory in bytes.

    A GPU is assumed to be an Ampere (8.0), the first with native bf16, or later.
    """
    kind = parse_choice(device, DEVICES, "--device")
    here = _cpu()
    total, free = host_memory or here.host_memory_total, host_memory or here.host_memory_free
    host = replace(here, host_memory_total=total, host_memory_free=free)
    if kind == "cuda":
        if device_memory is None:
            raise UsageError(
                "The memory of the CUDA device is unknown.",
                "Give its size, for example: --device-memory 24GiB",
            )
        name = "the described GPU"
        first, *rest = device_memory if isinstance(device_memory, tuple) else (device_memory,)
        others = tuple(GpuMemory(index, name, size, size) for index, size in enumerate(rest, start=1))
        gpu = _gpu(name, compute_capability, first, first, host)
        return replace(gpu, gpu_count=1 + len(others), other_gpus=others)
    if kind == "mps":
        return _with_device_memory(apple_gpu(host, macos=14), _single_size(device_memory))
    return _with_device_memory(
        replace(host, device_memory_total=total, device_memory_free=free), _single_size(device_memory)
    )


def probe_or_describe(
    device: str | None, device_memory: DeviceMemory | None, host_memory: int | None
) -> Hardware:
    """The hardware that `localgemma plan` plans for: this machine's, or the one that its options describe.

    A device memory without a device means a GPU: this machine's kind of GPU, else CUDA.
    """
    if device_memory is None and host_memory is None:
        return probe(device)
    kind = device or probe().device
    if kind == "cuda" and device_memory is None:
        size = host_memory or 0
        return replace(probe(kind), host_memory_total=size, host_memory_free=size)
    if device is None and kind == "cpu" and device_memory is not None:
        kind = "cuda"
    return describe_hardware(kind, device_memory, host_memory)


def parse_sizes(text: str) -> DeviceMemory:
    """Bytes of one size, or of several separated by commas, for several GPUs."""
    sizes = tuple(parse_size(part) for part in text.split(","))
    return sizes if len(sizes) > 1 else sizes[0]


def parse_size(text: str) -> int:
    """Bytes of `24GiB`, `24GB` or `16g`; a letter alone means the binary unit."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(i?b)?\s*", text, re.IGNORECASE)
    size = 0
    if match:
        number, prefix, suffix = match.groups()
        base = 1000 if (suffix or "").lower() == "b" else 1024
        bytes_ = float(number) * base ** ("kmgt".index(prefix.lower()) + 1)
        size = int(bytes_) if bytes_ < _TOO_MUCH else 0
    if size == 0:
        raise UsageError(f"Invalid amount of memory: {text!r}.", "Write it like 24GiB, 24GB or 512MiB.")
    return size


def _with_device_memory(hardware: Hardware, device_memory: int | None) -> Hardware:
    if device_memory is None:
        return hardware
    return replace(hardware, device_memory_total=device_memory, device_memory_free=device_memory)


def _single_size(device_memory: DeviceMemory | None) -> int | None:
    if isinstance(device_memory, tuple):
        raise UsageError(
            "Several sizes for --device-memory need NVIDIA GPUs.", "Give one size, or add --device cuda."
        )
    return device_memory


def _least(free: int, cap: int | None) -> int:
    return free if cap is None else min(free, cap)


def _cuda(environ: Mapping[str, str]) -> tuple[Hardware | None, str | None]:
    """The first visible GPU; or none, with the reason if there is a GPU that cannot be used."""
    gpus = visible_gpus(environ)
    if not gpus:
        return None, None
    if not torch_has_cuda():
        return None, f"{gpus[0].name} cannot be used: the installed PyTorch is a CPU build."
    host = _cpu()
    all_ = [_gpu(gpu.name, gpu.capability, gpu.memory_total, gpu.memory_free, host) for gpu in gpus]
    others = tuple(
        GpuMemory(index, each.name, each.device_memory_free, each.device_memory_total)
        for index, each in enumerate(all_[1:], start=1)
        if _abilities(each) == _abilities(all_[0])
    )
    return replace(all_[0], gpu_count=len(gpus), other_gpus=others), None


def _abilities(gpu: Hardware) -> tuple[bool, ...]:
    return gpu.bf16.supported, gpu.nf4.supported, gpu.int8.supported


def torch_has_cuda() -> bool:
    """Whether torch is a CUDA build; read from torch/version.py as text, as importing torch takes seconds."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return False
    try:
        version = (Path(torch.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"^cuda\b.*=\s*['\"]", version, re.MULTILINE) is not None


def _gpu(name: str, capability: tuple[int, int], total: int, free: int, host: Hardware) -> Hardware:
    """A CUDA device.

    bitsandbytes 0.50.2: its README requires compute capability 6.0 (recommends 7.5), and int8 products run
    on integer tensor cores, which exist from 7.5 (`has_imma` in its cuda_specs.py).
    """
    here = f"this GPU has {capability[0]}.{capability[1]}"
    return replace(
        host,
        device="cuda",
        name=name,
        device_memory_total=total,
        device_memory_free=free,
        bf16=Ability(capability >= (8, 0), f"bfloat16 is native from compute capability 8.0; {here}"),
        nf4=Ability(capability >= (6, 0), f"bitsandbytes needs compute capability 6.0; {here}"),
        int8=Ability(capability >= (7, 5), f"int8 products need compute capability 7.5; {here}"),
        int4=Hardware.int4,
        bf16_widened=False,
        compute_capability=capability,
    )


def _is_apple_silicon() -> bool:
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def _mps() -> Hardware:
    return apple_gpu(_cpu(), macos_major())


def apple_gpu(host: Hardware, macos: int) -> Hardware:
    """Apple's GPU. bitsandbytes 0.50.2's README: NF4 and int8 on M1 or later with macOS 14 or later.

    Metal lets a process use two thirds of a small Mac's memory on the GPU and three quarters of a large
    one's (recommendedMaxWorkingSetSize, as users report; not measured here).
    """
    memory = host.host_memory_total
    total = memory * 3 // 4 if memory > 36 * GIB else memory * 2 // 3
    recent = Ability(macos >= 14, f"Metal in PyTorch and bitsandbytes needs macOS 14; this is macOS {macos}")
    return replace(
        host,
        device="mps",
        name="Apple GPU",
        device_memory_total=total,
        device_memory_free=min(total, host.host_memory_free),
        bf16=recent,
        nf4=recent,
        int8=recent,
        int4=Hardware.int4,
        bf16_widened=False,
    )


def _cpu(notes: tuple[str, ...] = ()) -> Hardware:
    """The CPU. bitsandbytes 0.50.2's README: on x86-64, NF4 and int8 need AVX2; on 64-bit Arm, nothing.
    int4 needs nothing: without the C extension, PyTorch multiplies unpacked weights.
    """
    memory = host_memory()
    flags = cpu_flags()
    bf16 = bool(flags and flags & CPU_BF16_FLAGS)
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    kernels = Ability(
        not x86 or flags is None or "avx2" in flags or platform.system() == "Darwin",
        "bitsandbytes needs AVX2 on this processor",
    )
    return Hardware(
        device="cpu",
        name=cpu_name(),
        device_memory_total=memory.total,
        device_memory_free=memory.free,
        host_memory_total=memory.total,
        host_memory_free=memory.free,
        disk_free=disk_free(hub_cache(os.environ)),
        bf16=Ability(bf16, f"the processor has {'' if bf16 else 'no '}bfloat16 instructions"),
        nf4=kernels,
        int8=kernels,
        nf4_kernel=Ability(
            flags is None or "avx512_bf16" in flags, "the fast NF4 kernel needs a processor with AVX512-BF16"
        ),
        int4=Ability(True, ""),
        bf16_widened=bool(flags and "avx2" in flags) and not bf16,
        extension=_extension(flags or frozenset()),
        notes=notes,
    )


def _extension(flags: frozenset[str]) -> Ability:
    if extension_file() is None:
        return Ability(False, "the C extension was not built when localgemma was installed (no C compiler?)")
    return Ability(flags >= EXTENSION_FLAGS, "the C extension needs a processor with AVX2")
