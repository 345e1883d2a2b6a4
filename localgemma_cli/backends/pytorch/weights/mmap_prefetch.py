"""Prefetch mapped layers that do not fit in memory before they compute, and release them afterwards.

Releasing removes pages from this process only. The system may keep them in its page cache, and then the next
forward pass reads nothing from disk. They are marked as cold, so that the system evicts them before the
resident layers: a cyclic pass over more layers than fit would otherwise always evict those needed next.
"""

import mmap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import nn

_WILLNEED = getattr(mmap, "MADV_WILLNEED", None)  # None if the system does not support it
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
_READ_AHEAD = 1 << 17  # bytes per call; Linux reads at most its read-ahead window, 128 KB by default
_COLD = 20  # MADV_COLD of Linux 5.4, <bits/mman-linux.h>; Python has no constant for it


@dataclass(frozen=True)
class Span:
    """A range of bytes in a mapped file, from `first` up to but without `last`."""

    first: int
    last: int


def find_spans(places: Mapping[str, Span], prefixes: Sequence[str]) -> list[Span]:
    """Return the range that each prefix's tensors cover together; the file has a layer's side by side."""
    found = [[span for name, span in places.items() if name.startswith(prefix)] for prefix in prefixes]
    return [Span(min(each.first for each in spans), max(each.last for each in spans)) for spans in found]


def add_paging_hooks(
    layers: Sequence[nn.Module], spans: Sequence[Span], weights: mmap.mmap, resident: int
) -> None:
    """Keep the first `resident` layers in memory; prefetch and release the others at every forward pass."""
    moving = range(resident, len(layers))
    for index, layer in enumerate(layers):
        following = index + 1 if index + 1 < len(layers) else resident
        if following in moving:
            layer.register_forward_pre_hook(make_prefetch(weights, spans[following]))
        if index in moving:
            layer.register_forward_hook(make_release(weights, spans[index]))


def make_prefetch(weights: mmap.mmap, span: Span) -> Callable[..., None]:
    """Return a forward hook that starts to read the span from disk."""
    first = span.first // mmap.PAGESIZE * mmap.PAGESIZE

    def prefetch(*_: object) -> None:
        for start in range(first, span.last, _READ_AHEAD):
            _advise(weights, _WILLNEED, start, min(start + _READ_AHEAD, span.last))

    return prefetch


def make_release(weights: mmap.mmap, span: Span) -> Callable[..., None]:
    """Return a forward hook that releases the span's whole pages; its neighbours share those at the ends."""
    first = -(-span.first // mmap.PAGESIZE) * mmap.PAGESIZE
    last = span.last // mmap.PAGESIZE * mmap.PAGESIZE

    def release(*_: object) -> None:
        _advise(weights, _COLD, first, last)
        _advise(weights, _DONTNEED, first, last)

    return release


def _advise(weights: mmap.mmap, advice: int | None, first: int, last: int) -> None:
    if advice is not None and last > first:
        with suppress(OSError, AttributeError):  # only advice: without it the system pages by its defaults
            weights.madvise(advice, first, last - first)
