"""The terminal's state around the chat: kept out of the answers' way, and given back as it was."""

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
_ENDS = ("SIGTERM", "SIGHUP")  # by default they would leave the terminal as it is now


@contextmanager
def unechoed(stdin: TextIO, resumed: Callable[[], None]) -> Iterator[str]:
    """Keep what is typed while no prompt is up: unechoed, Enter as Enter, for the next prompt to read.

    In the terminal's line mode it would be printed into the answer, and Enter would arrive as Ctrl-J.
    Yields what was typed in that mode, before this program could change it, with its Enters mended. Calls
    `resumed` when the program goes on after a Ctrl-Z.
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
    quiet[3] |= termios.NOFLSH  # or a Ctrl-C would throw a paste's second half away
    if _foreground(descriptor) is None:
        quiet[3] &= ~termios.ISIG  # a Ctrl-C would end `torchrun`, and all with it
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)

    def resume(_signal: int, _frame: FrameType | None) -> None:
        with suppress(termios.error, OSError):  # this comes with a hang-up, too
            termios.tcsetattr(descriptor, termios.TCSANOW, quiet)  # a shell had it meanwhile
            resumed()

    handlers: dict[int, Any] = {getattr(signal, name): _leave for name in _ENDS} | {signal.SIGCONT: resume}
    handlers[signal.SIGINT] = signal.default_int_handler  # from here on, leaving takes more than an exit
    replaced = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield _pending(stdin).replace("\n", "\r")
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        with suppress(termios.error):  # it has hung up
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def pressed(keyboard: Input) -> list[KeyPress]:
    """The keys that wait to be read; by the prompt's own parser, which may be in the middle of a paste."""
    presses = get_typeahead(keyboard)
    while _waiting(keyboard.fileno()) and not keyboard.closed:
        presses += keyboard.read_keys()
    return presses


@contextmanager
def read_ahead(keyboard: Input) -> Iterator[None]:
    """Keep what is typed for the next prompt: a terminal holds 4 KB, and a Ctrl-C behind more has to wait.

    Where no terminal makes a signal of a Ctrl-C, this does.
    """
    ended = Event()

    def read() -> None:
        while not ended.wait(_READ_SECONDS):
            group = _foreground(keyboard.fileno())
            if group is not None and group != os.getpgrp():
                continue  # after `bg`, where reading would stop this program
            presses = pressed(keyboard)
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


def key_presses(typed: str) -> list[KeyPress]:
    presses: list[KeyPress] = []
    Vt100Parser(presses.append).feed_and_flush(typed)
    return presses


def _pending(stdin: TextIO) -> str:
    """What was typed and not read yet."""
    typed = b""
    while _waiting(stdin.fileno()) and (data := os.read(stdin.fileno(), 65536)):
        typed += data
    return typed.decode("utf-8", errors="ignore")


def _foreground(descriptor: int) -> int | None:
    """The processes that the terminal's keys are for.

    None where it is not this session's: `torchrun` gives each of its processes one of its own.
    """
    if sys.platform == "win32":
        return None
    try:
        return os.tcgetpgrp(descriptor)
    except OSError:
        return None


def _waiting(descriptor: int) -> bool:
    if sys.platform == "win32":
        return False  # only sockets can be asked
    return bool(select.select([descriptor], [], [], 0)[0])
