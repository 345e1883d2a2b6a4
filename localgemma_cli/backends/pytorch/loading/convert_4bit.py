"""A checkpoint's tensors to the bytes of its quantized copy: which tensor becomes what, made in parallel."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

import numpy as np
import torch

from localgemma_cli.backends.pytorch.kernels import int4 as int4_kernel
from localgemma_cli.backends.pytorch.layers import int4
from localgemma_cli.backends.pytorch.weights import quantize_int4
from localgemma_cli.backends.pytorch.weights.quantize_nf4 import (
    BLOCK,
    PACK_ROWS,
    Array,
    interleaved,
    plain,
    quantized,
)
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.safetensors_file import Entry, Stored, header

Kind = Literal["interleaved", "plain", "int4", "copy"]  # two layouts of NF4, and PyTorch's own of int4

_TORCH = {"U8": torch.uint8, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_SPELLING = {dtype: name for name, dtype in _TORCH.items()}
_ROWS = int4.ROWS  # of which a piece is a multiple; every layout's blocks of rows divide it
_CHUNK = 1 << 18  # weights of one piece of work: 1 MB in fp32, which a core's own cache holds


class Sink(Protocol):
    def write(self, data: memoryview, /) -> int: ...


@dataclass(frozen=True)
class Part:
    """One tensor of the checkpoint, and what becomes of it; a linear layer's `name` is its module's."""

    name: str
    source: Stored
    kind: Kind

    def entries(self, dtype: torch.dtype) -> tuple[Entry, ...]:
        """The tensors that it becomes, in the order of writing."""
        if self.kind == "copy":
            return (Entry(self.name, _SPELLING[dtype], self.source.shape),)
        rows, width = self.source.shape
        packed, blocks = f"{self.name}.packed", width // BLOCK
        if self.kind == "int4":
            padded = _padded(rows)
            scales = Entry(f"{self.name}.scales", "BF16", (width // quantize_int4.GROUP, padded, 2))
            return Entry(packed, "U8", (padded, width // 2)), scales
        if self.kind == "interleaved":
            scales = Entry(f"{self.name}.scales", "BF16", (blocks, rows))
            return Entry(packed, "U8", (rows, width // 2)), scales
        exact = "BF16" in (self.source.dtype, _SPELLING[dtype])  # a maximum is one of the weights
        maxima = Entry(f"{self.name}.maxima", "BF16" if exact else "F32", (rows * blocks,))
        return Entry(packed, "U8", (rows * width // 2, 1)), maxima


def linear_kind(shape: tuple[int, ...], wanted: Kind) -> Kind:
    """NF4's interleaved kernel reads 32 rows side by side; what does not divide stays plain."""
    return "plain" if wanted == "interleaved" and shape[0] % PACK_ROWS else wanted


def _padded(rows: int) -> int:
    return -(-rows // _ROWS) * _ROWS


def all_entries(parts: Sequence[Part], dtype: torch.dtype) -> list[Entry]:
    return [entry for part in parts for entry in part.entries(dtype)]


def file_size(entries: Sequence[Entry]) -> int:
    """Bytes of the file that `write` makes."""
    return len(header(entries)) + sum(entry.size for entry in entries)


def write(parts: Sequence[Part], dtype: torch.dtype, sink: Sink, progress: ProgressSink) -> None:
    """A whole safetensors file to `sink`, front to back; at most a few pieces are in memory at a time.

    Weights count as cast to `dtype` first, as a loader that quantizes afterwards would have them.
    """
    sink.write(memoryview(header(all_entries(parts, dtype))))
    total = sum(part.source.size for part in parts)
    done = 0
    workers = torch.get_num_threads()
    with _Files() as files, _single_threaded(workers) as pool:
        for piece, made in _in_order(_pieces(parts), pool, files, dtype, ahead=2 * workers):
            sink.write(made.data)
            if piece.is_last:
                sink.write(piece.part_scales(dtype).data)
            done += piece.size
            progress(LoadProgress("quantizing", done, total))


@contextmanager
def _single_threaded(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose torch operations start no threads of their own: the pieces keep every core busy."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, "quantize", torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # what is set in one thread is the default of those that come after


@dataclass(frozen=True)
class _Piece:
    """Rows `first` to `last` of a part; `scales` are for all of the part's rows.

    NF4: the blocks' maxima [n, k / 64] in float32. int4: scales and offsets [n, k / 64, 2], bfloat16 as bits.
    """

    part: Part
    first: int
    last: int
    scales: Array

    @property
    def is_last(self) -> bool:
        return self.part.kind != "copy" and self.last == self.part.source.shape[0]

    @property
    def size(self) -> int:
        """Bytes of the checkpoint that it stands for."""
        rows = self.part.source.shape[0]
        return self.part.source.size * (self.last - self.first) // rows

    def make(self, files: "_Files", dtype: torch.dtype) -> Array:
        """The bytes to write, flat or not; the scales are noted."""
        raw = files.read(self.part.source, self.first, self.last)
        if self.part.kind == "copy":
            return _bytes_of(_tensor(raw, self.part.source).to(dtype))
        values = _values(raw, self.part.source, dtype).reshape(self.last - self.first, -1)
        if self.part.kind == "int4":
            levels, factors = quantize_int4.quantized(values)
            self.scales[self.first : self.last] = factors.view(torch.int16).numpy()
            return _int4_packed(levels)
        levels, self.scales[self.first : self.last] = quantized(values)
        return interleaved(levels) if self.part.kind == "interleaved" else plain(levels)

    def part_scales(self, dtype: torch.dtype) -> Array:
        """The bytes of the whole part's scales, as its kernel wants them."""
        scales = torch.from_numpy(self.scales)
        if self.part.kind == "int4":
            return _bytes_of(scales.transpose(0, 1))
        if self.part.kind == "interleaved":
            scales = scales.T
        return _bytes_of(scales.to(_TORCH[self.part.entries(dtype)[1].dtype]))


def _int4_packed(levels: Array) -> Array:
    block = int4.row_block()
    assert block is not None  # or there would be no such part
    missing = _padded(len(levels)) - len(levels)
    whole = np.pad(levels, ((0, missing), (0, 0))) if missing else levels
    return int4_kernel.interleaved(torch.from_numpy(whole), block).numpy()


def _pieces(parts: Sequence[Part]) -> Iterator[_Piece]:
    for part in parts:
        rows, step, scales = part.source.shape[0], part.source.shape[0], np.empty(0)
        if part.kind != "copy":
            width = part.source.shape[1]
            step = _ROWS * max(1, _CHUNK // (_ROWS * width))
            scales = (
                np.zeros((_padded(rows), width // quantize_int4.GROUP, 2), dtype=np.int16)
                if part.kind == "int4"
                else np.empty((rows, width // BLOCK), dtype=np.float32)
            )
        for first in range(0, rows, step):
            yield _Piece(part, first, min(first + step, rows), scales)


def _in_order(
    pieces: Iterator[_Piece], pool: ThreadPoolExecutor, files: "_Files", dtype: torch.dtype, ahead: int
) -> Iterator[tuple[_Piece, Array]]:
    """Each piece with what it became; no more than `ahead` are under way or waiting."""
    under_way: deque[tuple[_Piece, Future[Array]]] = deque()
    try:
        for piece in pieces:
            under_way.append((piece, pool.submit(piece.make, files, dtype)))
            if len(under_way) > ahead:
                first, future = under_way.popleft()
                yield first, future.result()
        while under_way:
            first, future = under_way.popleft()
            yield first, future.result()
    finally:
        for _, future in under_way:
            future.cancel()


def _values(raw: Array, stored: Stored, dtype: torch.dtype) -> Array:
    """The weights as cast to `dtype`, in float32; flat."""
    if stored.dtype == "BF16" and dtype in (torch.bfloat16, torch.float32):
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    values: Array = _tensor(raw, stored).to(dtype).float().numpy()
    return values


def _tensor(raw: Array, stored: Stored) -> torch.Tensor:
    return torch.from_numpy(raw).view(_TORCH[stored.dtype])


def _bytes_of(tensor: torch.Tensor) -> Array:
    return tensor.contiguous().view(torch.uint8).numpy()


class _Files:
    """Open files, read by position under a lock; reading copies from the system's cache, and is quick."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[Path, FileIO] = {}

    def __enter__(self) -> "_Files":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._open.values():
            file.close()

    def read(self, stored: Stored, first: int, last: int) -> Array:
        """Rows `first` to `last`, as flat uint8; a ValueError where the file ends before."""
        row = stored.size // stored.shape[0]
        raw = np.empty((last - first) * row, dtype=np.uint8)
        with self._lock:
            if stored.file not in self._open:
                self._open[stored.file] = FileIO(stored.file)
            file = self._open[stored.file]
            file.seek(stored.offset + first * row)
            if file.readinto(raw.data) != raw.nbytes:
                raise ValueError(f"{stored.file.name} is cut short")
        return raw
