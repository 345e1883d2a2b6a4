"""The device a model would run on: found on this machine, or described by flags."""

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
    CPU_OWN_BF16_FLAGS,
    c_compiler,
    cpu_flags,
    cpu_name,
    disk_free,
    host_memory,
    macos_major,
)
from localgemma_cli.planning.nvml import visible_gpus
from localgemma_cli.types import DEVICES, DeviceKind, chosen

GIB = 1 << 30
_TOO_MUCH = float(1 << 60)  # bytes: no machine's
DeviceMemory = int | tuple[int, ...]  # bytes: of each device, or one by one


@dataclass(frozen=True)
class Ability:
    """Whether a device can do something, and the reason; true or false as a condition."""

    there: bool
    why: str

    def __bool__(self) -> bool:
        return self.there


@dataclass(frozen=True)
class Room:
    """A CUDA device by its index among the visible ones, with its free bytes and all of them (0: unknown)."""

    index: int
    name: str
    free: int
    total: int = 0


@dataclass(frozen=True)
class Hardware:
    """One device and its host; memory in bytes, and on a CPU or a Mac the two memories are one.

    `devices`: how many GPUs are visible; `others`: those after this one that can do all that it can.
    `nf4_kernel`, `int4`: whether there is a product for such weights as they are; NF4 without one is unpacked
    at each step, which is slow. `bf16_widened`: without bfloat16 instructions, weights in it can still be
    read as they are and multiplied in float32. `c_compiler`: for our own product of int4 weights, and
    with `own_bf16` of bfloat16 where it is widened.
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
    devices: int = 1
    others: tuple[Room, ...] = ()
    nf4_kernel: Ability = Ability(True, "")
    int4: Ability = Ability(False, "they are for processors")
    bf16_widened: bool = False
    c_compiler: bool = True
    own_bf16: bool = False
    notes: tuple[str, ...] = ()

    def capped(self, device_memory: DeviceMemory | None, host_memory: int | None) -> "Hardware":
        """The same with no more free memory than that; of several sizes, each device takes one or is left."""
        host = _least(self.host_memory_free, host_memory)
        if self.device != "cuda":
            device = _least(_least(self.device_memory_free, _one(device_memory)), host)
            return replace(self, device_memory_free=device, host_memory_free=host)
        caps = device_memory if isinstance(device_memory, tuple) else (device_memory,) * len(self.rooms)
        pairs = zip(self.rooms, caps, strict=False)
        first, *others = (replace(room, free=_least(room.free, cap)) for room, cap in pairs)
        return replace(self, device_memory_free=first.free, host_memory_free=host, others=tuple(others))

    def at_rest(self) -> "Hardware":
        """The same with as much free as there usually is, whatever other programs hold just now.

        A GPU has a tenth for a desktop and what drivers keep. A processor shares its memory with the system
        and its programs, which leave three quarters; so does a Mac, whose GPU may take no more than that.
        """
        host = self.host_memory_total * 3 // 4
        if self.device == "cuda":
            others = tuple(replace(room, free=room.total * 9 // 10 or room.free) for room in self.others)
            return replace(
                self,
                device_memory_free=self.device_memory_total * 9 // 10,
                host_memory_free=host,
                others=others,
            )
        return replace(self, device_memory_free=min(self.device_memory_total, host), host_memory_free=host)

    @property
    def rooms(self) -> tuple[Room, ...]:
        return (Room(0, self.name, self.device_memory_free), *self.others)


def probe(device: str | None = None) -> Hardware:
    """The asked-for device of this machine, else the best: CUDA, then Apple's GPU, then the CPU."""
    asked = None if device is None else chosen(device, DEVICES, "--device")
    cuda, note = _cuda(os.environ) if asked in (None, "cuda") else (None, None)
    if cuda is not None:
        return cuda
    if asked == "cuda":
        raise UsageError(
            note or "No NVIDIA GPU is visible here.",
            "Leave --device out; `localgemma plan` takes --device-memory for a GPU that is elsewhere.",
        )
    if asked in (None, "mps") and _is_apple_silicon():
        return _mps()
    if asked == "mps":
        raise UsageError("--device mps needs a Mac with Apple silicon.", "Leave --device out.")
    return _cpu(notes=(note,) if note else ())


def describe(
    device: str,
    device_memory: DeviceMemory | None,
    host_memory: int | None,
    *,
    compute_capability: tuple[int, int] = (8, 0),
) -> Hardware:
    """A machine that need not exist; what the flags leave out is as on this one.

    An undescribed GPU is taken for an Ampere (8.0) or later, the first with native bf16.
    """
    kind = chosen(device, DEVICES, "--device")
    here = _cpu()
    total, free = host_memory or here.host_memory_total, host_memory or here.host_memory_free
    host = replace(here, host_memory_total=total, host_memory_free=free)
    if kind == "cuda":
        if device_memory is None:
            raise UsageError(
                "A CUDA device that is not here has no memory to plan with.",
                "Say how much it has: --device-memory 24GiB.",
            )
        name = "the described GPU"
        first, *rest = device_memory if isinstance(device_memory, tuple) else (device_memory,)
        others = tuple(Room(index, name, size, size) for index, size in enumerate(rest, start=1))
        gpu = _gpu(name, compute_capability, first, first, host)
        return replace(gpu, devices=1 + len(others), others=others)
    if kind == "mps":
        return _sized(apple_gpu(host, macos=14), _one(device_memory))
    return _sized(replace(host, device_memory_total=total, device_memory_free=free), _one(device_memory))


def what_if(device: str | None, device_memory: DeviceMemory | None, host_memory: int | None) -> Hardware:
    """What `localgemma plan` answers for: this machine, or the one that its flags describe.

    A device memory without a device means a GPU: this machine's kind, else CUDA.
    """
    if device_memory is None and host_memory is None:
        return probe(device)
    kind = device or probe().device
    if kind == "cuda" and device_memory is None:
        size = host_memory or 0
        return replace(probe(kind), host_memory_total=size, host_memory_free=size)
    if device is None and kind == "cpu" and device_memory is not None:
        kind = "cuda"
    return describe(kind, device_memory, host_memory)


def parse_sizes(text: str) -> DeviceMemory:
    """One size, or with commas between them those of several GPUs."""
    sizes = tuple(parse_size(part) for part in text.split(","))
    return sizes if len(sizes) > 1 else sizes[0]


def parse_size(text: str) -> int:
    """Bytes of `24GiB`, `24GB` or `16g`; a bare letter means the binary unit, as everywhere it is typed."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(i?b)?\s*", text, re.IGNORECASE)
    size = 0
    if match:
        number, prefix, suffix = match.groups()
        base = 1000 if (suffix or "").lower() == "b" else 1024
        bytes_ = float(number) * base ** ("kmgt".index(prefix.lower()) + 1)
        size = int(bytes_) if bytes_ < _TOO_MUCH else 0
    if size == 0:
        raise UsageError(f"{text!r} is not an amount of memory.", "Write it like 24GiB, 24GB or 512MiB.")
    return size


def _sized(hardware: Hardware, device_memory: int | None) -> Hardware:
    if device_memory is None:
        return hardware
    return replace(hardware, device_memory_total=device_memory, device_memory_free=device_memory)


def _one(device_memory: DeviceMemory | None) -> int | None:
    if isinstance(device_memory, tuple):
        raise UsageError(
            "Several sizes of --device-memory stand for several NVIDIA GPUs.", "Give one, or --device cuda."
        )
    return device_memory


def _least(free: int, cap: int | None) -> int:
    return free if cap is None else min(free, cap)


def _cuda(environ: Mapping[str, str]) -> tuple[Hardware | None, str | None]:
    """The first visible GPU; or none, and the reason where a GPU is there but cannot be used."""
    gpus = visible_gpus(environ)
    if not gpus:
        return None, None
    if not torch_has_cuda():
        return None, f"{gpus[0].name} is here, but the installed PyTorch cannot use it: it is a CPU build."
    host = _cpu()
    all_ = [_gpu(gpu.name, gpu.capability, gpu.memory_total, gpu.memory_free, host) for gpu in gpus]
    others = tuple(
        Room(index, each.name, each.device_memory_free, each.device_memory_total)
        for index, each in enumerate(all_[1:], start=1)
        if _can(each) == _can(all_[0])
    )
    return replace(all_[0], devices=len(gpus), others=others), None


def _can(gpu: Hardware) -> tuple[bool, ...]:
    return gpu.bf16.there, gpu.nf4.there, gpu.int8.there


def torch_has_cuda() -> bool:
    """What torch/version.py says of the build; read as text, since importing torch takes seconds."""
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

    bitsandbytes 0.50.2: its README asks for compute capability 6.0 (7.5 recommended), and int8 products
    run on the integer tensor cores that `has_imma` in its cuda_specs.py dates to 7.5.
    """
    at = f"compute capability {capability[0]}.{capability[1]}"
    return replace(
        host,
        device="cuda",
        name=name,
        device_memory_total=total,
        device_memory_free=free,
        bf16=Ability(capability >= (8, 0), f"{at}; bfloat16 is native from 8.0 on"),
        nf4=Ability(capability >= (6, 0), f"{at}; bitsandbytes needs 6.0"),
        int8=Ability(capability >= (7, 5), f"{at}; int8 products need 7.5"),
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

    Metal lets a process keep two thirds of a small Mac's memory on the GPU and three quarters of a large
    one's (recommendedMaxWorkingSetSize as users report it; an assumption, not measured here).
    """
    memory = host.host_memory_total
    total = memory * 3 // 4 if memory > 36 * GIB else memory * 2 // 3
    recent = Ability(macos >= 14, f"macOS {macos}; Metal in PyTorch and bitsandbytes needs 14")
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
    """bitsandbytes 0.50.2's README: on x86-64 NF4 and int8 need AVX2; on 64-bit Arm nothing special.

    PyTorch 2.13 has its int4 product for AVX2 and AVX-512, but not as Microsoft's compiler builds it.
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
        bf16=Ability(bf16, "the processor has bfloat16 instructions" if bf16 else "no bfloat16 instructions"),
        nf4=kernels,
        int8=kernels,
        nf4_kernel=Ability(
            flags is None or "avx512_bf16" in flags, "NF4's fast product needs a processor with AVX512-BF16"
        ),
        int4=Ability(
            bool(flags and "avx2" in flags), "PyTorch's product for them needs AVX2, and Linux to tell of it"
        ),
        bf16_widened=bool(flags and "avx2" in flags) and not bf16,
        c_compiler=bool(c_compiler()),
        own_bf16=bool(flags and flags >= CPU_OWN_BF16_FLAGS) and platform.system() == "Linux",
        notes=notes,
    )
