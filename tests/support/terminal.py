"""A person at an 80x24 terminal: a real pseudo-terminal, its bytes read by a terminal emulator."""

import re
import signal
import time
from collections.abc import Sequence
from types import TracebackType

import pexpect
import pyte
from support.program import COMMAND, Program

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def paste(text: str) -> str:
    """As a terminal sends what is pasted."""
    return f"\x1b[200~{text}\x1b[201~"


def answer_to(question: str) -> str:
    """Matches once an answer has begun; what turns while it is waited for is none."""
    return rf"> {re.escape(question)}\n(?![{SPINNER}]).*\S"


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
        self.screen = pyte.HistoryScreen(columns, rows, history=20_000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        env = {"TERM": "xterm-256color", **program.env, "COLUMNS": str(columns), "LINES": str(rows)}
        command = ["bash", *(["-m"] if interactive else []), "-c", shell] if shell else [*COMMAND, *words]
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
        """Send a line; what came until the next empty prompt."""
        before = self.row
        self.type(f"{line}\r")
        deadline = time.monotonic() + seconds
        while not (self.row > before and self._at_prompt):
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
        for _ in range(data.count(b"\x1b[6n")):
            self.child.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")
        return True

    @property
    def text(self) -> str:
        """Everything on the screen and scrolled off it, trailing blanks left out."""
        above = [
            "".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top
        ]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display])

    def wait(self, pattern: str, seconds: float = 240, *, count: int = 1) -> str:
        """The terminal's text once `pattern` is in it `count` times."""
        deadline = time.monotonic() + seconds
        while len(re.findall(pattern, self.text)) < count:
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
        self.child.close()
        status: int | None = self.child.exitstatus
        return status
