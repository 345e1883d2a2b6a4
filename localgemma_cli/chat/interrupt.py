"""Ctrl-C: it stops an answer between two tokens, and never waits for a backend."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from queue import Empty, SimpleQueue
from threading import Event as Cancel
from threading import Thread
from types import FrameType
from typing import TypeVar

from localgemma_cli.backends.base import Backend
from localgemma_cli.conversation import Message
from localgemma_cli.errors import InterruptedAnswer
from localgemma_cli.events import Event, Finished, LoadProgress, ProgressSink, Reading, Timing, Usage
from localgemma_cli.sampling import Sampling

_LOOK_SECONDS = 0.05
_GRACE_SECONDS = 0.2  # after a Ctrl-C, for the step that is under way to end by itself

Item = TypeVar("Item")
Status = Callable[[str], AbstractContextManager[ProgressSink]]  # given what is waited for at first


@contextmanager
def cancel_on_sigint(cancel: Cancel, *, second_raises: bool) -> Iterator[None]:
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


class InterruptibleBackend:
    """Another backend, whose work can be left; `status` shows what is waited for before an answer begins.

    What does not end soon after a Ctrl-C goes on by itself, and what it still makes is dropped. The next call
    waits for it, since a model has one KV cache. `cancel` is what a Ctrl-C sets during `count` and `prompt`.
    """

    def __init__(self, backend: Backend, cancel: Callable[[], Cancel], status: Status) -> None:
        self._backend, self._cancel, self._status = backend, cancel, status
        self._worker = _Worker()
        self.name, self.note, self.continues = backend.name, backend.note, backend.continues

    @property
    def context_length(self) -> int | None:
        return self._backend.context_length

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """See `Backend.stream`; tells no `Reading`, since `status` shows it."""
        started = time.perf_counter()
        events = self._made(lambda: self._backend.stream(messages, sampling, cancel), cancel)
        event: Event | None = None
        try:
            with self._waiting() as tell:
                while isinstance(event := next(events), Reading):
                    tell(LoadProgress("reading the prompt:", event.done, event.total, "tokens"))
            yield event
            for event in events:
                yield event
        except _Left:
            if event is None:
                raise _stopped() from None
            seconds = time.perf_counter() - started
            yield Finished("interrupted", Usage(None, None, None), Timing(seconds, None, seconds))
        except GeneratorExit:
            if not isinstance(event, Finished):  # nobody wants the rest
                cancel.set()
            raise

    def count(self, messages: Sequence[Message]) -> int | None:
        return self._result(lambda: self._backend.count(messages))

    def prompt(self, messages: Sequence[Message]) -> str | None:
        return self._result(lambda: self._backend.prompt(messages))

    def recognizes(self, answer: Message) -> bool:
        return self._backend.recognizes(answer)  # as fast as its text is read

    def _result(self, action: Callable[[], Item]) -> Item:
        """InterruptedAnswer where Ctrl-C came first."""
        try:
            with self._waiting():
                return next(self._made(lambda: iter((action(),)), self._cancel()))
        except _Left:
            raise _stopped() from None

    def _waiting(self) -> AbstractContextManager[ProgressSink]:
        first = "reading the prompt" if self._backend.name == "local" else "waiting for the server"
        return self._status("ending what was stopped" if self._worker.busy else first)

    def _made(self, work: Callable[[], Iterator[Item]], cancel: Cancel) -> Iterator[Item]:
        """What `work` gives, or raises; `_Left` where it goes on after `cancel`."""
        came: SimpleQueue[tuple[Item] | BaseException | None] = SimpleQueue()

        def job() -> None:
            try:
                if cancel.is_set():
                    raise _Left
                for item in work():
                    came.put((item,))
                came.put(None)
            except BaseException as error:  # whatever it is, the thread that waits raises it
                came.put(error)

        self._worker.do(job)
        left_at = float("inf")
        while time.monotonic() < left_at:
            try:
                item = came.get(timeout=_LOOK_SECONDS)
            except Empty:
                if cancel.is_set():
                    left_at = min(left_at, time.monotonic() + _GRACE_SECONDS)
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            yield item[0]
        raise _Left


class _Left(Exception):
    """What was waited for goes on alone."""


def _stopped() -> InterruptedAnswer:
    return InterruptedAnswer("Stopped before the answer began.", "Send it again when you like.")


class _Worker:
    """One thread, which does one job after another."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._unfinished = 0
        self._thread = Thread(target=self._run, name="answer", daemon=True)

    @property
    def busy(self) -> bool:
        return self._unfinished > 0

    def do(self, job: Callable[[], None]) -> None:
        if self._thread.ident is None:
            self._thread.start()
        self._unfinished += 1
        self._jobs.put(job)

    def _run(self) -> None:
        while True:
            self._jobs.get()()
            self._unfinished -= 1
