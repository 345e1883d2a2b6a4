"""The terminal's input mode around the chat."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def unechoed(stdin: TextIO) -> Iterator[None]:
    """Keep what is typed while no prompt is up: unechoed, Enter as Enter, for the next prompt to read.

    In the terminal's line mode it would be printed into the answer, and Enter would arrive as Ctrl-J.
    """
    if sys.platform == "win32" or not stdin.isatty():
        yield
        return
    import termios

    descriptor = stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
