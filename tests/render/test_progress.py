"""The row that shows progress, on a real terminal."""

import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from operator import contains
from typing import TextIO

import pyte
import pytest

from localgemma_cli.environment import Streams
from localgemma_cli.events import LoadProgress
from localgemma_cli.render.progress import show_progress

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")


@contextmanager
def terminal(columns: int) -> Iterator[tuple[TextIO, "Screen"]]:
    """Its end for a program, and what a person sees."""
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    os.set_blocking(ours, False)
    with open(theirs, "w", encoding="utf-8") as stream:
        yield stream, Screen(ours, columns)
    os.close(ours)


class Screen:
    def __init__(self, descriptor: int, columns: int) -> None:
        self._descriptor, self._screen = descriptor, pyte.Screen(columns, 24)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""

    def rows(self) -> list[str]:
        """Those with something in them."""
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            data = b""
        self.raw += data
        self._stream.feed(data)
        return [row.rstrip() for row in self._screen.display if row.strip()]

    def wait(self, *words: str) -> list[str]:
        """Until there is a row for each of the words, and no other: the system passes bytes on late."""
        deadline = time.monotonic() + 120
        while len(rows := self.rows()) != len(words) or not all(map(contains, rows, words)):
            assert time.monotonic() < deadline, rows
            time.sleep(0.01)
        return rows


def test_progress_is_one_row_that_messages_displace_and_that_is_erased_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with terminal(40) as (stderr, screen):
        streams = Streams(sys.stdin, stderr, stderr)
        with show_progress(stderr, quiet=False) as progress:
            progress(LoadProgress("reading the prompt:", 512, 3021, "tokens"))
            (row,) = screen.wait("reading the prompt: 512 of ")
            assert len(row) <= 39
            assert row.endswith(" s")
            progress(LoadProgress("\x1b]0;title\x07" + "many words " * 20))
            screen.wait("many words")
            streams.say("Something to say meanwhile.")
            assert screen.wait("Something", "many words")[0] == "Something to say meanwhile."
        assert screen.wait("Something") == ["Something to say meanwhile."]
        assert b"title\x07" not in screen.raw


@pytest.mark.parametrize(("quiet", "kind"), [(True, "xterm"), (False, "dumb")])
def test_no_progress_with_quiet_or_on_a_terminal_that_cannot_erase(
    monkeypatch: pytest.MonkeyPatch, quiet: bool, kind: str
) -> None:
    monkeypatch.setenv("TERM", kind)
    with terminal(80) as (stderr, screen):
        with show_progress(stderr, quiet=quiet) as progress:
            progress(LoadProgress("loading"))
            time.sleep(0.7)
        assert screen.rows() == []
        assert screen.raw == b""
