"""The terminal's state around the chat: kept out of the answers' way, and given back as it was."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

from prompt_toolkit.output import Output

_ENDS = ("SIGTERM", "SIGHUP")  # by default they would leave the terminal as it is now


@contextmanager
def unechoed(stdin: TextIO) -> Iterator[str]:
    """Keep what is typed while no prompt is up: unechoed, Enter as Enter, for the next prompt to read.

    In the terminal's line mode it would be printed into the answer, and Enter would arrive as Ctrl-J.
    Yields what was typed in that mode, before this program could change it, with its Enters mended.
    """
    if sys.platform == "win32":
        yield ""
        return
    import termios

    descriptor = stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)

    def resume(_signal: int, _frame: FrameType | None) -> None:
        termios.tcsetattr(descriptor, termios.TCSANOW, quiet)  # a shell had it meanwhile

    handlers: dict[int, Any] = {getattr(signal, name): _leave for name in _ENDS} | {signal.SIGCONT: resume}
    replaced = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield pending(stdin).replace("\n", "\r")
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        with suppress(termios.error):  # it has hung up
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def pasting_in_brackets(output: Output) -> Iterator[None]:
    """A page pasted while no prompt is up is one message as well: the prompt's own mode ends with it."""
    output.enable_bracketed_paste()
    output.flush()
    yield


def pending(stdin: TextIO) -> str:
    """What was typed and not read yet."""
    if sys.platform == "win32":
        return ""
    import select

    typed = b""
    while select.select([stdin], [], [], 0)[0] and (data := os.read(stdin.fileno(), 65536)):
        typed += data
    return typed.decode("utf-8", errors="ignore")
