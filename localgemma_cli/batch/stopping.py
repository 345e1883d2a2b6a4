"""Stop a batch on Ctrl-C or SIGTERM: what is complete stays, and the rest is left for --resume."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from types import FrameType

_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 1.0  # for the running step and the last write to end


@dataclass
class Stop:
    """`cancel` is set by the first signal, which is `number`."""

    cancel: Event = field(default_factory=Event)
    number: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """The first SIGINT or SIGTERM sets the event, a second one raises KeyboardInterrupt.

    A signal that this program was started to ignore stays ignored, as in `localgemma batch … &` of a script.
    """
    stop = Stop()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.cancel.is_set():
            raise KeyboardInterrupt
        stop.number = number
        stop.cancel.set()

    before = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_until_stopped(work: Callable[[], None], stop: Stop) -> None:
    """Run `work` in a thread, so that a signal is handled at once; raises what it raised.

    Returns soon after a stop, even if `work` does not.
    """
    raised: list[BaseException] = []
    done = Event()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # the waiting thread raises it
            raised.append(error)
        finally:
            done.set()

    Thread(target=run, name="batch", daemon=True).start()
    deadline = float("inf")
    while not done.wait(_LOOK_SECONDS) and time.monotonic() < deadline:
        if stop.cancel.is_set():
            deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    if raised:
        raise raised[0]
