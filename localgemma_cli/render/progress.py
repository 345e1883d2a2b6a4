"""Show progress on stderr: downloading, loading, and all else before the first token of an answer."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from threading import Event, Thread
from typing import TextIO

from localgemma_cli.environment import STATUS
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.sanitize import one_line
from localgemma_cli.units import format_bytes

_DRAW_SECONDS = 0.1
_QUIET_SECONDS = 0.4  # shorter waits show nothing
_FRAMES, _PLAIN_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"


def describe_progress(progress: LoadProgress) -> str:
    """A few words for a status line: `downloading 1.2 GB of 5.2 GB`."""
    if progress.total and progress.unit == "bytes":
        return f"{progress.stage} {format_bytes(progress.done)} of {format_bytes(progress.total)}"
    if progress.total and progress.unit == "tokens":
        return f"{progress.stage} {progress.done} of {progress.total} tokens"
    if progress.total:
        return f"{progress.stage} {100 * progress.done // progress.total}%"
    return progress.stage


def ignore_progress(_: LoadProgress) -> None:
    pass


@contextmanager
def show_progress(stderr: TextIO, *, quiet: bool, first: str = "starting") -> Iterator[ProgressSink]:
    """A spinner with the latest stage and the seconds so far, erased at the end.

    Shows nothing with `quiet`, if stderr is not a terminal, or on one that cannot erase (TERM=dumb).
    """
    if quiet or not stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield ignore_progress
        return
    spinner = _Spinner(stderr, first)
    try:
        yield spinner.update
    finally:
        spinner.stop()


class _Spinner:
    """Drawn by its own thread, so that it turns during blocking calls."""

    def __init__(self, terminal: TextIO, first: str) -> None:
        self._terminal, self._latest = terminal, LoadProgress(first)
        self._ended = Event()
        self._thread = Thread(target=self._draw, name="spinner", daemon=True)
        self._thread.start()

    def update(self, progress: LoadProgress) -> None:
        self._latest = progress

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        STATUS.erase(self._terminal)

    def _draw(self) -> None:
        started = time.monotonic()
        wait = _QUIET_SECONDS
        for frame in cycle(_frames(self._terminal)):
            if self._ended.wait(wait):
                return
            wait = _DRAW_SECONDS
            seconds = int(time.monotonic() - started)
            STATUS.draw(
                self._terminal, self._fitted(frame, one_line(describe_progress(self._latest)), f"{seconds} s")
            )

    def _fitted(self, frame: str, words: str, seconds: str) -> str:
        """The text of one row, shortened to the width: only one row can be erased."""
        from rich.cells import cell_len, set_cell_size

        try:
            columns = os.get_terminal_size(self._terminal.fileno()).columns or 80
        except OSError:  # the terminal has hung up
            columns = 80
        room = max(columns - len(f"{frame}  · {seconds}") - 1, 1)
        words = words if cell_len(words) <= room else set_cell_size(words, room - 1) + "…"
        return f"{frame} {words} · {seconds}"


def _frames(terminal: TextIO) -> str:
    try:
        _FRAMES.encode(terminal.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _PLAIN_FRAMES
    return _FRAMES
