"""A person at an 80x24 terminal: a real pseudo-terminal, its bytes read by a terminal emulator."""

import os
import re
import signal
import termios
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType

import pexpect
import pyte
from ptyprocess import PtyProcess
from support import warm_start
from support.program import COMMAND, Program

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
HISTORY = 20_000  # lines
END_OF_PROMPT = b"\x1b[?2004l"  # a paste is no longer marked as one


def paste(text: str) -> str:
    """As a terminal sends what is pasted."""
    return f"\x1b[200~{text}\x1b[201~"


def answer_to(question: str) -> str:
    """Matches once an answer has begun; what turns while it is waited for is none."""
    return rf"> {re.escape(question)}\n(?![{SPINNER}]).*\S"


def _spawn_warm(
    words: Sequence[str], *, env: dict[str, str], dimensions: tuple[int, int], cwd: Path
) -> pexpect.spawn:
    """As pexpect.spawn, from the process of warm_start.py."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, dimensions)
    child = pexpect.spawn(None, timeout=5)
    child.pid = warm_start.start(words, (theirs, theirs, theirs), cwd=cwd, env=env, terminal=True)
    os.close(theirs)
    child.ptyproc = PtyProcess(child.pid, ours)
    child.child_fd, child.closed, child.terminated = ours, False, False
    return child


class Terminal:
    """Runs `localgemma WORDS`, or a `shell` line; answers cursor position requests as a terminal does.

    An `interactive` shell has jobs, so that Ctrl-Z and fg work.
    """

    def __init__(
        self,
        program: Program,
        words: Sequence[str] = (),
        *,
        shell: str | None = None,
        interactive: bool = False,
        rows: int = 24,
        columns: int = 80,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=HISTORY, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._above: list[str] = []
        self._text: str | None = None
        env = {"TERM": "xterm-256color", **program.env, "COLUMNS": str(columns), "LINES": str(rows)}
        command = ["bash", *(["-m"] if interactive else []), "-c", shell] if shell else [*COMMAND, *words]
        if not shell and program.starts_warm(words):
            self.child = _spawn_warm(words, env=env, dimensions=(rows, columns), cwd=program.folder)
        else:
            self.child = pexpect.spawn(
                command[0], command[1:], env=env, dimensions=(rows, columns), cwd=program.folder, timeout=5
            )
        self.child.delaybeforesend = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.child.isalive():
            self.child.kill(signal.SIGKILL)
        self.child.close(force=True)

    def type(self, text: str) -> None:
        self.child.send(text)

    def enter(self, line: str, seconds: float = 240) -> str:
        """Send a line at the prompt; what came until the next empty prompt."""
        deadline = time.monotonic() + seconds
        while not self._at_input:  # all of the prompt has been drawn
            assert time.monotonic() < deadline, f"no prompt for {line!r} in:\n{self.text}"
            assert self.read(), f"the program ended before {line!r}:\n{self.text}"
        before, ended = self.row, self.raw.count(END_OF_PROMPT)
        self.type(f"{line}\r")
        while not (self.raw.count(END_OF_PROMPT) > ended and self._at_prompt):
            assert time.monotonic() < deadline, f"no prompt after {line!r} in:\n{self.text}"
            assert self.read(), f"the program ended after {line!r}:\n{self.text}"
        return "\n".join(self.text.split("\n")[before : self.row])

    @property
    def row(self) -> int:
        """Of the cursor, counted from the first line that ever was."""
        return len(self.screen.history.top) + self.screen.cursor.y

    @property
    def line(self) -> str:
        """That the cursor is in."""
        return self.screen.display[self.screen.cursor.y].rstrip()

    @property
    def _at_input(self) -> bool:
        """Whether the cursor is behind the prompt, or in a further line of what is typed."""
        row = self.screen.display[self.screen.cursor.y]
        return row.startswith(("> ", "  ")) and self.screen.cursor.x >= 2

    @property
    def _at_prompt(self) -> bool:
        return self.screen.display[self.screen.cursor.y].rstrip() == ">" and self.screen.cursor.x == 2

    def read(self, seconds: float = 0.05) -> bool:
        """Take in what came; False once the program has closed the terminal."""
        try:
            data = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        self._text = None
        for _ in range(data.count(b"\x1b[6n")):
            self.child.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")
        return True

    @property
    def text(self) -> str:
        """Everything on the screen and scrolled off it, trailing blanks left out."""
        if self._text is None:
            lines = [*self._scrolled_off(), *(line.rstrip() for line in self.screen.display)]
            self._text = "\n".join(lines)
        return self._text

    def _scrolled_off(self) -> list[str]:
        """The lines above the screen; each is put together once, since it no longer changes."""
        top = self.screen.history.top
        assert len(top) < HISTORY
        if len(top) < len(self._above):  # the program has cleared them
            self._above.clear()
        for line in islice(top, len(self._above), None):
            self._above.append("".join(line[x].data for x in range(self.screen.columns)).rstrip())
        return self._above

    def wait(self, pattern: str, seconds: float = 240, *, count: int = 1) -> str:
        """The terminal's text once `pattern` is in it `count` times."""
        deadline = time.monotonic() + seconds
        while len(re.findall(pattern, before := self.text)) < count:
            while self.text == before:
                if time.monotonic() > deadline:
                    raise AssertionError(f"no {pattern!r} ({count}x) after {seconds} s in:\n{self.text}")
                if not self.read():
                    raise AssertionError(f"the program ended without {pattern!r}:\n{self.text}")
        return self.text

    def wait_for_prompt(self, seconds: float = 240) -> None:
        """Until the cursor stands behind an empty prompt."""
        deadline = time.monotonic() + seconds
        while not self._at_prompt:
            assert time.monotonic() < deadline, f"no prompt in:\n{self.text}"
            assert self.read(), f"the program ended:\n{self.text}"

    def wait_for_end(self, seconds: float = 120) -> int | None:
        """The exit status."""
        deadline = time.monotonic() + seconds
        while self.read(0.1):
            assert time.monotonic() < deadline, f"still running:\n{self.text}"
        while self.child.isalive():  # its terminal is closed, and it may take a moment more: `close` kills it
            assert time.monotonic() < deadline, f"it runs on without its terminal:\n{self.text}"
            time.sleep(0.005)
        self.child.close()
        status: int | None = self.child.exitstatus
        return status
