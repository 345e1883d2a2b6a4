"""The terminal's modes during the chat, and the keys typed while no prompt is up."""

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from types import FrameType
from typing import Any, TextIO

from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

_READ_SECONDS = 0.05
_ENDS = ("SIGTERM", "SIGHUP")  # by default they would leave the modes changed


@contextmanager
def keep_keystrokes(
    stdin: TextIO, resumed: Callable[[], None], interrupted: Callable[[], None]
) -> Iterator[str]:
    """Keep keys typed while no prompt is up for the next one, without echo.

    In line mode they would be printed into the answer, and Enter would arrive as Ctrl-J. Yields what was
    typed before the mode changed, with its Enters restored. Calls `resumed` after a Ctrl-Z and `fg`, and
    `interrupted` at a Ctrl-C.
    """
    if sys.platform == "win32":
        yield ""
        return
    import termios

    descriptor = stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = _quiet_mode(descriptor)
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)

    def resume(_signal: int, _frame: FrameType | None) -> None:
        with suppress(termios.error, OSError):  # a hang-up sends it as well
            termios.tcsetattr(descriptor, termios.TCSANOW, quiet)  # the shell changed it
            resumed()

    handlers: dict[int, Any] = {getattr(signal, name): _leave for name in _ENDS} | {signal.SIGCONT: resume}
    handlers[signal.SIGINT] = lambda *_: interrupted()  # until now it ended the program at once
    replaced = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield _read_pending(stdin).replace("\n", "\r")
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _quiet_mode(descriptor: int) -> list[Any]:
    """The terminal's attributes without echo and line mode."""
    import termios

    quiet = termios.tcgetattr(descriptor)
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    quiet[3] |= termios.NOFLSH  # otherwise a Ctrl-C discards the rest of a paste
    if _foreground(descriptor) is None:
        quiet[3] &= ~termios.ISIG  # otherwise a Ctrl-C ends `torchrun` and all its processes
    return quiet


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def read_pending_keys(keyboard: Input) -> list[KeyPress]:
    """Read the keys that wait, with the prompt's own parser, which may be in the middle of a paste."""
    presses = get_typeahead(keyboard)
    while _waiting(keyboard.fileno()) and not keyboard.closed:
        presses += keyboard.read_keys()
    return presses


@contextmanager
def read_ahead(keyboard: Input) -> Iterator[None]:
    """Keep reading keys for the next prompt: a terminal buffers 4 KB and delays a Ctrl-C behind more.

    Raises SIGINT for a Ctrl-C if the terminal does not.
    """
    ended = Event()

    def read() -> None:
        while not ended.wait(_READ_SECONDS):
            group = _foreground(keyboard.fileno())
            if group is not None and group != os.getpgrp():
                continue  # after `bg`, when reading would stop this program
            presses = read_pending_keys(keyboard)
            typed = [press for press in presses if press.key != Keys.ControlC]
            store_typeahead(keyboard, typed)
            if len(typed) < len(presses):
                os.kill(os.getpid(), signal.SIGINT)

    reader = Thread(target=read, name="keys", daemon=True)
    reader.start()
    try:
        yield
    finally:
        ended.set()
        reader.join()


def parse_keys(typed: str) -> list[KeyPress]:
    """The key presses of what was typed."""
    presses: list[KeyPress] = []
    Vt100Parser(presses.append).feed_and_flush(typed)
    return presses


def _read_pending(stdin: TextIO) -> str:
    """What was typed and has not been read."""
    typed = b""
    while _waiting(stdin.fileno()) and (data := os.read(stdin.fileno(), 65536)):
        typed += data
    return typed.decode("utf-8", errors="ignore")


def _foreground(descriptor: int) -> int | None:
    """The terminal's foreground process group.

    None if the terminal belongs to another session: `torchrun` gives each process its own.
    """
    if sys.platform == "win32":
        return None
    try:
        return os.tcgetpgrp(descriptor)
    except OSError:
        return None


def _waiting(descriptor: int) -> bool:
    if sys.platform == "win32":
        return False  # select works only on sockets there
    return bool(select.select([descriptor], [], [], 0)[0])
