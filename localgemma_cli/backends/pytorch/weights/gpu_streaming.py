"""Stream the weights that do not fit on a GPU from the host while the layers before them compute.

The streamed modules share two slots of device memory, in the order in which a forward pass calls them. When
a module has computed, its slot is free, and the module two places later is copied into it on a separate
stream while the next one computes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from localgemma_cli.errors import DoesNotFitError
from localgemma_cli.units import format_bytes

SLOTS = 2
_ALIGNMENT = 256  # bytes; kernels load vectors of numbers


class Link(Protocol):
    """A device with two queues, one for computing and one for copying; a mark is a point in one of them."""

    device: torch.device

    def pin(self, tensor: Tensor) -> None:
        """Page-lock this host memory, so that the device reads it directly; DoesNotFitError if that fails."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue a copy to the device; `source` is host memory and must not change until it has been read."""

    def mark_copies(self) -> Any:
        """Return a mark at the present end of the copying queue."""

    def mark_computing(self) -> Any:
        """Return a mark at the present end of the computing queue."""

    def delay_copies(self, mark: Any) -> None:
        """Make later copies wait until the mark is reached."""

    def delay_computing(self, mark: Any) -> None:
        """Make later computing wait until the mark is reached."""

    def wait_on_host(self, mark: Any) -> None:
        """Block the host until the mark is reached."""


class CudaLink:
    """A CUDA device: the current stream computes, a stream of its own copies."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies = torch.cuda.Stream(device)

    def pin(self, tensor: Tensor) -> None:
        """Page-lock memory that exists already: PyTorch's pinned allocations round up to a power of two."""
        try:
            error = torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)
            torch.cuda.check_error(int(error))
        except RuntimeError as reason:
            raise DoesNotFitError(
                f"Cannot pin {format_bytes(tensor.nbytes)} of host memory: {reason}",
                "Use a smaller --host-memory; the remaining layers are then read from disk.",
            ) from reason

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)

    def mark_copies(self) -> torch.cuda.Event:
        mark: torch.cuda.Event = self._copies.record_event()
        return mark

    def mark_computing(self) -> torch.cuda.Event:
        mark: torch.cuda.Event = torch.cuda.current_stream(self.device).record_event()
        return mark

    def delay_copies(self, mark: torch.cuda.Event) -> None:
        self._copies.wait_event(mark)

    def delay_computing(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(mark)

    def wait_on_host(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Bundle:
    """One module's tensors in their mapped file, and the offset of each in a slot.

    `prefetch` starts reading them from disk; `release` frees their pages after a read.
    """

    tensors: tuple[Tensor, ...]
    prefetch: Callable[..., None] = _nothing
    release: Callable[..., None] = _nothing

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor starts in a slot, in bytes, and the end of the last, all aligned."""
        ends, offset = [0], 0
        for tensor in self.tensors:
            offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
            ends.append(offset)
        return tuple(ends)

    @property
    def size(self) -> int:
        """The size in a slot, in bytes."""
        return self.offsets[-1]

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the tensors as views of a slot, or of any other [size] uint8."""
        return [
            flat[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for offset, tensor in zip(self.offsets, self.tensors, strict=False)
        ]

    def read_into(self, flat: Tensor) -> Tensor:
        """Read the tensors from the file into `flat`; return the part of it that they fill."""
        for view, tensor in zip(self.views(flat), self.tensors, strict=True):
            view.copy_(tensor)
        self.release()
        return flat[: self.size]


class Ring:
    """Two slots on the device, filled with the bundles in turn, always in the same order.

    The first bundles, up to `host_bytes`, stay in pinned host memory; the others are read from their file
    each time. Raises DoesNotFitError if host memory cannot be pinned.
    """

    def __init__(self, bundles: Sequence[Bundle], link: Link, host_bytes: int) -> None:
        self._link = link
        size = max(bundle.size for bundle in bundles)
        self._bundles = bundles
        self._slots = [torch.empty(size, dtype=torch.uint8, device=link.device) for _ in range(SLOTS)]
        link.delay_copies(link.mark_computing())  # the slots' memory may still be in use by its last owner
        self._pinned = self._pin(host_bytes)
        staged = len(self._pinned) < len(bundles)
        self._stages = [self._page_locked(size) for _ in range(SLOTS if staged else 0)]
        self._holds: list[int | None] = [None] * SLOTS
        self._copied: list[Any] = [None] * SLOTS
        self._computed: list[Any] = [None] * SLOTS
        for item in range(min(SLOTS, len(bundles))):
            self._fetch(item)

    def _page_locked(self, size: int) -> Tensor:
        memory = torch.empty(size, dtype=torch.uint8)
        self._link.pin(memory)
        return memory

    def _pin(self, room: int) -> list[Tensor]:
        pinned: list[Tensor] = []
        for bundle in self._bundles:
            room -= bundle.size
            if room < 0:
                break
            pinned.append(bundle.read_into(self._page_locked(bundle.size)))
        return pinned

    def views(self, item: int) -> list[Tensor]:
        """Return the item's tensors on the device; valid only between `enter` and `leave`."""
        return self._bundles[item].views(self._slots[item % SLOTS])

    def enter(self, item: int) -> None:
        """Make computing wait for the item's copy; call this before the item computes."""
        slot = item % SLOTS
        if self._holds[slot] != item:  # the last forward pass was interrupted
            self._computed[slot] = self._link.mark_computing()
            self._fetch(item)
        self._link.delay_computing(self._copied[slot])

    def leave(self, item: int) -> None:
        """Start to copy the next item into the slot; call this once the item's computing is queued."""
        slot = item % SLOTS
        self._computed[slot] = self._link.mark_computing()
        following = item + SLOTS if item + SLOTS < len(self._bundles) else slot
        if following != item:
            self._fetch(following)

    def _fetch(self, item: int) -> None:
        slot = item % SLOTS
        source = self._source(item, slot)
        if self._computed[slot] is not None:
            self._link.delay_copies(self._computed[slot])
        self._link.copy(self._slots[slot][: len(source)], source)
        self._holds[slot], self._copied[slot] = item, self._link.mark_copies()

    def _source(self, item: int, slot: int) -> Tensor:
        if item < len(self._pinned):
            return self._pinned[item]
        following = item + 1 if item + 1 < len(self._bundles) else len(self._pinned)
        self._bundles[following].prefetch()
        if self._copied[slot] is not None:
            self._link.wait_on_host(self._copied[slot])  # the stage's last content must have been copied
        return self._bundles[item].read_into(self._stages[slot])


def add_ring_hooks(ring: Ring, modules: Sequence[nn.Module]) -> None:
    """Make each module's forward enter and leave the ring; a forward pass calls them in this order."""

    def entering(item: int) -> Callable[..., None]:
        return lambda *_: ring.enter(item)

    def leaving(item: int) -> Callable[..., None]:
        return lambda *_: ring.leave(item)

    for item, module in enumerate(modules):
        module.register_forward_pre_hook(entering(item))
        module.register_forward_hook(leaving(item))


class SplitLinear(nn.Module):
    """x [..., k] -> [..., n]: a linear layer too large for a slot, split by rows into several."""

    def __init__(self, pieces: Sequence[nn.Module]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(pieces)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([piece(x) for piece in self.pieces], dim=-1)


def split_rows(packed: Tensor, maxima: Tensor, rows: int, most_bytes: int) -> list[tuple[Tensor, Tensor]]:
    """Split the tensors of a `PlainNF4` [rows, k] between rows into pieces of at most `most_bytes` each."""
    step = max(1, most_bytes * rows // (packed.nbytes + maxima.nbytes))
    cut = zip(packed.view(rows, -1).split(step), maxima.view(rows, -1).split(step), strict=True)
    return [(numbers.reshape(-1, 1), scales.reshape(-1)) for numbers, scales in cut]
