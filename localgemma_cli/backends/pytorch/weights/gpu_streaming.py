"""Weights that do not fit on a GPU wait on the host; each is copied in while the one before computes.

The modules that wait take turns in two slots on the device, in the order in which a forward calls them. Once
one has computed, its slot is free for the one after the next: that is copied on a stream of its own, beside
the next one's computing.
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
    """A device with two queues, one that computes and one that copies; a mark is a point in either."""

    device: torch.device

    def pin(self, tensor: Tensor) -> None:
        """Let the device read this host memory without the host's help."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """On the copying queue; `source` is in the host's memory and must stay as it is until it was read."""

    def copied(self) -> Any:
        """Mark the copying queue as it is now."""

    def computed(self) -> Any:
        """Mark the computing queue as it is now."""

    def copying_waits(self, mark: Any) -> None: ...

    def computing_waits(self, mark: Any) -> None: ...

    def host_waits(self, mark: Any) -> None: ...


class CudaLink:
    """What computes is the current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies = torch.cuda.Stream(device)

    def pin(self, tensor: Tensor) -> None:
        """Registered, not allocated as pinned: PyTorch rounds that up to a power of two."""
        try:
            error = torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)
            torch.cuda.check_error(int(error))
        except RuntimeError as reason:
            raise DoesNotFitError(
                f"{format_bytes(tensor.nbytes)} of the host's memory could not be pinned: {reason}",
                "Take a smaller --host-memory; the rest is then read from disk.",
            ) from reason

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)

    def copied(self) -> torch.cuda.Event:
        mark: torch.cuda.Event = self._copies.record_event()
        return mark

    def computed(self) -> torch.cuda.Event:
        mark: torch.cuda.Event = torch.cuda.current_stream(self.device).record_event()
        return mark

    def copying_waits(self, mark: torch.cuda.Event) -> None:
        self._copies.wait_event(mark)

    def computing_waits(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(mark)

    def host_waits(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Bundle:
    """One module's tensors as they lie in their mapped file, and where each goes in a slot.

    `ahead` tells the system that they will be read soon, `past` that they were.
    """

    tensors: tuple[Tensor, ...]
    ahead: Callable[..., None] = _nothing
    past: Callable[..., None] = _nothing

    @property
    def offsets(self) -> tuple[int, ...]:
        ends, offset = [0], 0
        for tensor in self.tensors:
            offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
            ends.append(offset)
        return tuple(ends)

    @property
    def size(self) -> int:
        """Bytes in a slot."""
        return self.offsets[-1]

    def views(self, flat: Tensor) -> list[Tensor]:
        """The tensors over a slot, or over any [size] uint8."""
        return [
            flat[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for offset, tensor in zip(self.offsets, self.tensors, strict=False)
        ]

    def lay_into(self, flat: Tensor) -> Tensor:
        """Read them from the file; returns the part of `flat` that they take."""
        for view, tensor in zip(self.views(flat), self.tensors, strict=True):
            view.copy_(tensor)
        self.past()
        return flat[: self.size]


class Ring:
    """Two slots through which bundles go round, always in the same order.

    Those for which `host_bytes` suffice are pinned; the others are read from their file each time.
    """

    def __init__(self, bundles: Sequence[Bundle], link: Link, host_bytes: int) -> None:
        self._link = link
        size = max(bundle.size for bundle in bundles)
        self._bundles = bundles
        self._slots = [torch.empty(size, dtype=torch.uint8, device=link.device) for _ in range(SLOTS)]
        link.copying_waits(link.computed())  # who had the slots' memory before may not be done
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
            pinned.append(bundle.lay_into(self._page_locked(bundle.size)))
        return pinned

    def views(self, item: int) -> list[Tensor]:
        """The item's tensors on the device; they hold its values from `enter` to `leave` only."""
        return self._bundles[item].views(self._slots[item % SLOTS])

    def enter(self, item: int) -> None:
        """Before the item computes."""
        slot = item % SLOTS
        if self._holds[slot] != item:  # the last forward was cut short
            self._computed[slot] = self._link.computed()
            self._fetch(item)
        self._link.computing_waits(self._copied[slot])

    def leave(self, item: int) -> None:
        """After its computing was given to the device."""
        slot = item % SLOTS
        self._computed[slot] = self._link.computed()
        following = item + SLOTS if item + SLOTS < len(self._bundles) else slot
        if following != item:
            self._fetch(following)

    def _fetch(self, item: int) -> None:
        slot = item % SLOTS
        source = self._source(item, slot)
        if self._computed[slot] is not None:
            self._link.copying_waits(self._computed[slot])
        self._link.copy(self._slots[slot][: len(source)], source)
        self._holds[slot], self._copied[slot] = item, self._link.copied()

    def _source(self, item: int, slot: int) -> Tensor:
        if item < len(self._pinned):
            return self._pinned[item]
        following = item + 1 if item + 1 < len(self._bundles) else len(self._pinned)
        self._bundles[following].ahead()
        if self._copied[slot] is not None:
            self._link.host_waits(self._copied[slot])  # what was staged last must have left
        return self._bundles[item].lay_into(self._stages[slot])


def take_turns(ring: Ring, modules: Sequence[nn.Module]) -> None:
    """Let each module's forward enter and leave the ring; they are called in this order."""

    def entering(item: int) -> Callable[..., None]:
        return lambda *_: ring.enter(item)

    def leaving(item: int) -> Callable[..., None]:
        return lambda *_: ring.leave(item)

    for item, module in enumerate(modules):
        module.register_forward_pre_hook(entering(item))
        module.register_forward_hook(leaving(item))


class InPieces(nn.Module):
    """x [..., k] -> [..., n]: a linear layer too large for a slot, as several that follow each other."""

    def __init__(self, pieces: Sequence[nn.Module]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(pieces)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([piece(x) for piece in self.pieces], dim=-1)


def row_pieces(packed: Tensor, maxima: Tensor, rows: int, most_bytes: int) -> list[tuple[Tensor, Tensor]]:
    """`PlainNF4`'s tensors of [rows, k], cut between rows so that none of the pieces is larger than that."""
    step = max(1, most_bytes * rows // (packed.nbytes + maxima.nbytes))
    cut = zip(packed.view(rows, -1).split(step), maxima.view(rows, -1).split(step), strict=True)
    return [(numbers.reshape(-1, 1), scales.reshape(-1)) for numbers, scales in cut]
