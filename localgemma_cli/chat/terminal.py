"""The terminal's input mode around the chat."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


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
    try:
        yield pending(stdin).replace("\n", "\r")
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def pending(stdin: TextIO) -> str:
    """What was typed and not read yet."""
    if sys.platform == "win32":
        return ""
    import select

    typed = b""
    while select.select([stdin], [], [], 0)[0] and (data := os.read(stdin.fileno(), 65536)):
        typed += data
    return typed.decode("utf-8", errors="ignore")
