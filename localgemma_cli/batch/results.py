"""Where the results of a batch are written: standard output, or a file that a later run can resume."""

import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Protocol, TextIO

from localgemma_cli.documents import failure_reason
from localgemma_cli.environment import expand_home
from localgemma_cli.errors import DiskSpaceError, NotFoundError, UsageError
from localgemma_cli.render.json import json_line, write_line
from localgemma_cli.text import parse_json

_SYNC_SECONDS = 1.0  # at most this much work is lost when the machine fails; a sync takes milliseconds
_START = b'{"index": '  # of every result


class Results(Protocol):
    """Writes the results of a batch, one by one."""

    def write(self, result: Mapping[str, object]) -> None:
        """Write one result at once. Raises BrokenPipeError if nothing reads it, and other errors."""
        ...


class StreamResults:
    """Results in a pipe or on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, result: Mapping[str, object]) -> None:
        write_line(self._stream, result)


class ResultsFile:
    """Results in a file, which one run at a time appends to; a result is in it whole or not at all.

    With `resume`, results of an earlier run stay, and `earlier` has to be called before `write`. Raises
    UsageError for a file with content otherwise, and NotFoundError for one that cannot be opened.
    """

    def __init__(self, path: str, *, resume: bool) -> None:
        self.path = path
        self._file = _open(path)
        _lock(self._file, path)
        status = os.fstat(self._file)
        self.is_regular = stat.S_ISREG(status.st_mode)
        if resume and not self.is_regular:
            raise UsageError(f"--resume needs a regular file, unlike {path}.", "Remove --resume.")
        if status.st_size and not resume:
            raise UsageError(
                f"{path} is not empty.", "Add --resume to continue it, or choose another file with -o."
            )
        self._end = 0
        self._synced = time.monotonic()

    def earlier(self) -> Iterator[tuple[dict[str, object], int]]:
        """The results of an earlier run, each with its end in the file, in bytes; `cut` has to follow.

        UsageError for a line that is not a result, except a last one that was cut off.
        """
        end = 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n") and line.startswith(_START[: len(line)]):
                    return
                result = _parse_result(line)
                if result is None:
                    raise UsageError(
                        f"Line {number} of {self.path} is not a result of a batch.",
                        "Choose another file with -o.",
                    )
                end += len(line)
                yield result, end

    def cut(self, end: int) -> None:
        """Keep only the first `end` bytes, and continue there."""
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        self._end = end

    def write(self, result: Mapping[str, object]) -> None:
        data = json_line(result).encode()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            self._sync()
        except BrokenPipeError:
            raise
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise DiskSpaceError(
                f"Cannot write {self.path}: {failure_reason(error)}.",
                "Free some space, or write to another place.",
            ) from error
        self._end += len(data)

    def close(self) -> None:
        with suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)

    def _sync(self) -> None:
        now = time.monotonic()
        if self.is_regular and now - self._synced > _SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = now


def _open(path: str) -> int:
    place = expand_home(path)
    try:
        mode = os.O_RDWR | os.O_CREAT if place.is_file() or not place.exists() else os.O_WRONLY
        return os.open(place, mode | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise NotFoundError(f"Cannot write {path}: {failure_reason(error)}.", "Check the path.") from None


def _lock(file: int, path: str) -> None:
    """UsageError where another run writes the file; a file system without locks is trusted."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"Another run is writing {path}.", "Wait for its end, or choose another file with -o."
        ) from None
    except OSError:
        pass


def _parse_result(line: bytes) -> dict[str, object] | None:
    try:
        value = parse_json(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("key"), str) else None
