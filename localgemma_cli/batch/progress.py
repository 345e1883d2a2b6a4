"""A progress bar with the rate and the time left, as the words of a status line."""

import time

from localgemma_cli.chat.phrases import format_count

_CELLS = 20
_FULL, _EMPTY = "█░"
_PLAIN_FULL, _PLAIN_EMPTY = "#-"


class BatchProgress:
    """The rows of one run, from now on; `size` of the input in bytes, None for a pipe.

    `encoding` is the terminal's.
    """

    def __init__(self, size: int | None, encoding: str | None, *, rows: int = 0, read: int = 0) -> None:
        self._size, self._started = size, time.monotonic()
        self._rows, self._read = rows, read  # of earlier runs
        self._full, self._empty = _FULL, _EMPTY
        try:
            f"{_FULL}{_EMPTY}".encode(encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            self._full, self._empty = _PLAIN_FULL, _PLAIN_EMPTY

    def describe(self, rows: int, failed: int, read: int) -> str:
        """So many rows, the failed ones included, up to the position `read` of the input."""
        if not self._size:
            return self.summarize(rows, failed)
        done = min(read / self._size, 1)
        full = round(done * _CELLS)
        words = (
            f"{self._full * full}{self._empty * (_CELLS - full)} {done:.0%} · {self.summarize(rows, failed)}"
        )
        if read > self._read:
            left = self._seconds() * max(self._size - read, 0) / (read - self._read)
            words += f" · {_clock(left)} left"
        return words

    def summarize(self, rows: int, failed: int) -> str:
        rate = (rows - self._rows) / self._seconds()
        words = f"{format_count(rows, 'row')} · {_rounded(rate)} rows/s"
        return f"{words} · {failed} failed" if failed else words

    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-3)


def _rounded(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def _clock(seconds: float) -> str:
    """`0:09`, `12:30`, `5:00:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
