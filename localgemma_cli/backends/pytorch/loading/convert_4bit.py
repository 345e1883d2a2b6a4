"""Writes a quantized file from a checkpoint: a few rows at a time, on every core."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol

import numpy as np
import torch

from localgemma_cli.backends.pytorch.kernels.quantize import quantize_fast
from localgemma_cli.backends.pytorch.loading.quantized_file import (
    TORCH_DTYPES,
    Conversion,
    QuantizedFile,
    factor_rows,
    padded_rows,
)
from localgemma_cli.backends.pytorch.weights.groups import BLOCK as ROW_BLOCK
from localgemma_cli.backends.pytorch.weights.groups import pack_groups
from localgemma_cli.backends.pytorch.weights.quantize_nf4 import (
    BLOCK,
    Array,
    pack_interleaved,
    pack_plain,
    quantize_nf4,
)
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.safetensors_file import Stored

_ROW_STEP = ROW_BLOCK  # a piece has a multiple of this many rows; the row blocks of all layouts divide it
_CHUNK = 1 << 18  # weights per piece: 1 MB in float32, which fits in a core's own cache


class Sink(Protocol):
    """A binary file, or anything else to write bytes to."""

    def write(self, data: memoryview, /) -> int: ...


def write_quantized(
    file: QuantizedFile,
    sink: Sink,
    progress: ProgressSink,
    importance: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> None:
    """Write the whole of `file` to `sink`, front to back; at most a few pieces are in memory at a time.

    Weights are cast to the file's dtype before they are quantized, as by a loader that quantizes afterwards.
    `importance`: by layer, how much its input features count, [k] float32; else all count the same.
    """
    sink.write(memoryview(file.header))
    total = sum(each.source.size for each in file.conversions)
    done = 0
    workers = torch.get_num_threads()
    with _Files() as files, _single_threaded(workers) as pool:
        for piece, converted in _convert_all(file, pool, files, importance, ahead=2 * workers):
            sink.write(converted.data)
            if piece.is_last:
                sink.write(piece.all_scales(file.dtype).data)
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
        torch.set_num_threads(threads)  # a thread's setting is the default of threads that start later


@dataclass(frozen=True)
class _Piece:
    """Rows `first` to `last` of a tensor; `scales` is shared by all pieces of that tensor.

    NF4: block maxima [n, k / 64] float32. In groups: factors [2 or 1, padded n] float32.
    """

    conversion: Conversion
    first: int
    last: int
    scales: Array
    importance: torch.Tensor | None = None

    @property
    def is_last(self) -> bool:
        return self.conversion.kind != "copy" and self.last == self.conversion.source.shape[0]

    @property
    def size(self) -> int:
        """Bytes in the checkpoint."""
        source = self.conversion.source
        return source.size * (self.last - self.first) // source.shape[0]

    def convert(self, files: "_Files", dtype: torch.dtype) -> Array:
        """The bytes to write, in any shape; stores the scales of its rows in `scales`."""
        source, kind = self.conversion.source, self.conversion.kind
        raw = files.read(source, self.first, self.last)
        if kind == "copy":
            return _bytes_of(_as_tensor(raw, source).to(dtype))
        values = _cast_values(raw, source, dtype).reshape(self.last - self.first, -1)
        if self.conversion.bits:
            return self._convert_groups(torch.from_numpy(values))
        levels, self.scales[self.first : self.last] = quantize_nf4(values)
        return pack_interleaved(levels) if kind == "interleaved" else pack_plain(levels)

    def _convert_groups(self, values: torch.Tensor) -> Array:
        missing = padded_rows(len(values)) - len(values)
        padded = torch.nn.functional.pad(values, (0, 0, 0, missing)) if missing else values
        groups = quantize_fast(padded, self.conversion.bits, self.importance)
        self.scales[:, self.first : self.last + missing] = groups.factors.numpy()
        return pack_groups(groups.levels, groups.scales, groups.offsets).numpy()

    def all_scales(self, dtype: torch.dtype) -> Array:
        """The bytes of the whole tensor's scales, in the layout of `QuantizedFile`."""
        scales = torch.from_numpy(self.scales)
        if self.conversion.bits:
            return _bytes_of(scales)
        if self.conversion.kind == "interleaved":
            scales = scales.T
        return _bytes_of(scales.to(TORCH_DTYPES[self.conversion.entries(dtype)[1].dtype]))


def _split(conversions: Iterable[Conversion], importance: Mapping[str, torch.Tensor]) -> Iterator[_Piece]:
    """A tensor that is only copied is one piece."""
    for each in conversions:
        rows, step, scales = each.source.shape[0], each.source.shape[0], np.empty(0)
        if each.kind != "copy":
            width = each.source.shape[1]
            step = _ROW_STEP * max(1, _CHUNK // (_ROW_STEP * width))
            scales = (
                np.empty((factor_rows(each.bits), padded_rows(rows)), dtype=np.float32)
                if each.bits
                else np.empty((rows, width // BLOCK), dtype=np.float32)
            )
        for first in range(0, rows, step):
            yield _Piece(each, first, min(first + step, rows), scales, importance.get(each.name))


def _convert_all(
    file: QuantizedFile,
    pool: ThreadPoolExecutor,
    files: "_Files",
    importance: Mapping[str, torch.Tensor],
    ahead: int,
) -> Iterator[tuple[_Piece, Array]]:
    """Each piece with its bytes, in order; at most `ahead` are being converted or waiting."""
    pending: deque[tuple[_Piece, Future[Array]]] = deque()
    try:
        for piece in _split(file.conversions, importance):
            pending.append((piece, pool.submit(piece.convert, files, file.dtype)))
            if len(pending) > ahead:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        for _, future in pending:
            future.cancel()


def _cast_values(raw: Array, stored: Stored, dtype: torch.dtype) -> Array:
    """The weights cast to `dtype`, then to float32; flat."""
    if stored.dtype == "BF16" and dtype in (torch.bfloat16, torch.float32):
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    values: Array = _as_tensor(raw, stored).to(dtype).float().numpy()
    return values


def _as_tensor(raw: Array, stored: Stored) -> torch.Tensor:
    return torch.from_numpy(raw).view(TORCH_DTYPES[stored.dtype])


def _bytes_of(tensor: torch.Tensor) -> Array:
    return tensor.contiguous().view(torch.uint8).numpy()


class _Files:
    """The checkpoint's files, opened once; threads take turns to read.

    Reading is quick, as it mostly copies from the system's file cache.
    """

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
        """Rows `first` to `last`, flat uint8; ValueError where the file is too short."""
        row = stored.size // stored.shape[0]
        raw = np.empty((last - first) * row, dtype=np.uint8)
        with self._lock:
            if stored.file not in self._open:
                self._open[stored.file] = FileIO(stored.file)
            file = self._open[stored.file]
            file.seek(stored.offset + first * row)
            if file.readinto(raw.data) != raw.nbytes:
                raise ValueError(f"{stored.file.name} is truncated")
        return raw
