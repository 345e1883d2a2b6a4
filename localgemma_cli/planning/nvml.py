"""List NVIDIA GPUs through the driver's library NVML: without torch or a CUDA context, in milliseconds."""

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG slice of it; memory in bytes, `capability` as (major, minor)."""

    uuid: str
    name: str
    memory_total: int
    memory_free: int
    capability: tuple[int, int]


class NvmlError(Exception):
    """A call of the library failed; the message has the return code of nvml.h."""


class _Memory(ctypes.Structure):
    """nvmlMemory_t of nvml.h."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_TEXT_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE and NVML_DEVICE_UUID_V2_BUFFER_SIZE


def visible_gpus(environ: Mapping[str, str], library: str = LIBRARY) -> tuple[Gpu, ...]:
    """The GPUs that CUDA would show in this environment, in CUDA's order; empty without a driver."""
    with suppress(OSError, NvmlError), _opened(library) as nvml:
        return select_visible(_all_gpus(nvml), environ, lambda uuid: _by_uuid(nvml, uuid))
    return ()


def select_visible(
    gpus: Sequence[Gpu], environ: Mapping[str, str], slice_of: Callable[[str], Gpu | None]
) -> tuple[Gpu, ...]:
    """`gpus` (in bus order), selected and ordered by CUDA_DEVICE_ORDER and CUDA_VISIBLE_DEVICES.

    CUDA's default order is the fastest first; here by compute capability, as NVML has no figure for speed.
    As in CUDA, the first invalid entry ends the list; `slice_of` finds a MIG slice by its uuid.
    """
    if environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        gpus = sorted(gpus, key=lambda gpu: gpu.capability, reverse=True)
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(gpus)
    selected: list[Gpu] = []
    for entry in visible.split(","):
        gpu = _find(gpus, entry.strip(), slice_of)
        if gpu is None:
            break
        selected.append(gpu)
    return tuple(selected)


def _find(gpus: Sequence[Gpu], entry: str, slice_of: Callable[[str], Gpu | None]) -> Gpu | None:
    """The GPU that one entry of CUDA_VISIBLE_DEVICES names: an index, the start of a uuid, a MIG slice."""
    if entry.isdecimal():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    if entry.startswith("MIG-"):
        return slice_of(entry)
    return next((gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)), None)


@contextmanager
def _opened(library: str) -> Iterator[ctypes.CDLL]:
    nvml = ctypes.CDLL(library)
    _call(nvml, "nvmlInit_v2")
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _call(nvml: ctypes.CDLL, function: str, *arguments: object) -> None:
    code = getattr(nvml, function)(*arguments)
    if code != 0:
        raise NvmlError(f"{function} returned {code}")


def _all_gpus(nvml: ctypes.CDLL) -> tuple[Gpu, ...]:
    count = ctypes.c_uint()
    _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    return tuple(_gpu(nvml, _by_index(nvml, index)) for index in range(count.value))


def _by_index(nvml: ctypes.CDLL, index: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
    return handle


def _by_uuid(nvml: ctypes.CDLL, uuid: str) -> Gpu | None:
    """A MIG slice, with the compute capability of its GPU."""
    handle, parent = ctypes.c_void_p(), ctypes.c_void_p()
    with suppress(NvmlError):
        _call(nvml, "nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(handle))
        _call(nvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle, ctypes.byref(parent))
        return _gpu(nvml, handle, parent)
    return None


def _gpu(nvml: ctypes.CDLL, handle: ctypes.c_void_p, parent: ctypes.c_void_p | None = None) -> Gpu:
    memory = _Memory()
    _call(nvml, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    return Gpu(
        uuid=_text(nvml, "nvmlDeviceGetUUID", handle),
        name=_text(nvml, "nvmlDeviceGetName", handle),
        memory_total=memory.total,
        memory_free=memory.free,
        capability=_capability(nvml, parent or handle),
    )


def _text(nvml: ctypes.CDLL, function: str, handle: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    _call(nvml, function, handle, buffer, ctypes.c_uint(_TEXT_BYTES))
    return buffer.value.decode(errors="replace")


def _capability(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call(nvml, "nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value
