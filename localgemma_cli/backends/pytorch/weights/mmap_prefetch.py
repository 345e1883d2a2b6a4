"""Layers that do not fit stay in their file: the next one is read ahead of its turn, the last one let go.

Letting go takes pages out of this process only. The system may still hold them, and then the next turn costs
no reading; but it is told to give them up first, before the layers that are meant to stay. Without that, a
round over more layers than fit would always lose exactly those that come next.
"""

import mmap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import nn

_WILLNEED = getattr(mmap, "MADV_WILLNEED", None)  # None where the system has no such advice
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
_READ_AHEAD = 1 << 17  # bytes; of more at once Linux reads only its read-ahead window, 128 KB by default
_COLD = 20  # Linux 5.4, <bits/mman-linux.h>; Python does not name it


@dataclass(frozen=True)
class Span:
    """Bytes of a mapped file, `first` up to `last`."""

    first: int
    last: int


def spans_of(places: Mapping[str, Span], prefixes: Sequence[str]) -> list[Span]:
    """What the tensors under each prefix cover together; a layer's are written one after the other."""
    found = [[span for name, span in places.items() if name.startswith(prefix)] for prefix in prefixes]
    return [Span(min(each.first for each in spans), max(each.last for each in spans)) for spans in found]


def page_through(
    layers: Sequence[nn.Module], spans: Sequence[Span], weights: mmap.mmap, resident: int
) -> None:
    """Keep the first `resident` layers; the others come and go at every forward."""
    moving = range(resident, len(layers))
    for index, layer in enumerate(layers):
        following = index + 1 if index + 1 < len(layers) else resident
        if following in moving:
            layer.register_forward_pre_hook(reader(weights, spans[following]))
        if index in moving:
            layer.register_forward_hook(releaser(weights, spans[index]))


def reader(weights: mmap.mmap, span: Span) -> Callable[..., None]:
    """What tells the system that the span will be read soon."""
    first = span.first // mmap.PAGESIZE * mmap.PAGESIZE

    def read_ahead(*_: object) -> None:
        for start in range(first, span.last, _READ_AHEAD):
            _advise(weights, _WILLNEED, start, min(start + _READ_AHEAD, span.last))

    return read_ahead


def releaser(weights: mmap.mmap, span: Span) -> Callable[..., None]:
    """What lets the span go; only whole pages, as those at the ends belong to a neighbour too."""
    first = -(-span.first // mmap.PAGESIZE) * mmap.PAGESIZE
    last = span.last // mmap.PAGESIZE * mmap.PAGESIZE

    def release(*_: object) -> None:
        _advise(weights, _COLD, first, last)
        _advise(weights, _DONTNEED, first, last)

    return release


def _advise(weights: mmap.mmap, advice: int | None, first: int, last: int) -> None:
    if advice is not None and last > first:
        with suppress(OSError, AttributeError):  # advice only: without it the system pages as it always does
            weights.madvise(advice, first, last - first)
