"""Ctrl-C while an answer is written: stop between two tokens, never in the middle of a forward."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event as Cancel
from types import FrameType


@contextmanager
def cancelling(cancel: Cancel, *, second_raises: bool) -> Iterator[None]:
    """SIGINT sets `cancel`; where `second_raises`, a second one is a KeyboardInterrupt: a step may hang."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if cancel.is_set() and second_raises:
            raise KeyboardInterrupt
        cancel.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
