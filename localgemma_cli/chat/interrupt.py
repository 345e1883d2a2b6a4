"""Ctrl-C: stops an answer between two tokens, without waiting for the backend."""

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
_GRACE_SECONDS = 0.2  # after a Ctrl-C, for the running step to end by itself

Item = TypeVar("Item")
Status = Callable[[str], AbstractContextManager[ProgressSink]]  # its argument: the first stage to show


@contextmanager
def cancel_on_sigint(cancel: Cancel, *, second_raises: bool) -> Iterator[None]:
    """SIGINT sets `cancel`; with `second_raises`, a second one raises KeyboardInterrupt if a step hangs."""

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
    """Runs another backend in a thread; `status` shows progress until the answer begins.

    Work that does not end soon after a Ctrl-C continues in its thread, and its results are dropped. The next
    call waits for it, since a model has one KV cache. `cancel` returns the event that Ctrl-C sets during
    `count` and `prompt`.
    """

    def __init__(self, backend: Backend, cancel: Callable[[], Cancel], status: Status) -> None:
        self._backend, self._cancel, self._status = backend, cancel, status
        self._worker = _Worker()
        self.name, self.note, self.continues = backend.name, backend.note, backend.continues

    @property
    def context_length(self) -> int | None:
        return self._backend.context_length

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """See `Backend.stream`; `Reading` events go to `status`."""
        started = time.perf_counter()
        events = self._run(lambda: self._backend.stream(messages, sampling, cancel), cancel)
        event: Event | None = None
        try:
            with self._waiting() as show:
                while isinstance(event := next(events), Reading):
                    show(LoadProgress("reading the prompt:", event.done, event.total, "tokens"))
            yield event
            for event in events:
                yield event
        except _Abandoned:
            if event is None:
                raise _stopped() from None
            seconds = time.perf_counter() - started
            yield Finished("interrupted", Usage(None, None, None), Timing(seconds, None, seconds))
        except GeneratorExit:
            if not isinstance(event, Finished):  # the rest is not needed
                cancel.set()
            raise

    def count(self, messages: Sequence[Message]) -> int | None:
        return self._result(lambda: self._backend.count(messages))

    def prompt(self, messages: Sequence[Message]) -> str | None:
        return self._result(lambda: self._backend.prompt(messages))

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        return self._result(lambda: self._backend.score(messages, answers))

    def recognizes(self, answer: Message) -> bool:
        return self._backend.recognizes(answer)  # fast enough not to need a thread

    def _result(self, action: Callable[[], Item]) -> Item:
        """The result of `action`; raises InterruptedAnswer if Ctrl-C comes first."""
        try:
            with self._waiting():
                return next(self._run(lambda: iter((action(),)), self._cancel()))
        except _Abandoned:
            raise _stopped() from None

    def _waiting(self) -> AbstractContextManager[ProgressSink]:
        first = "reading the prompt" if self._backend.name == "local" else "waiting for the server"
        return self._status("stopping the previous answer" if self._worker.is_busy else first)

    def _run(self, work: Callable[[], Iterator[Item]], cancel: Cancel) -> Iterator[Item]:
        """What `work` yields or raises; raises _Abandoned if it continues after `cancel`."""
        results: SimpleQueue[tuple[Item] | BaseException | None] = SimpleQueue()

        def job() -> None:
            try:
                if cancel.is_set():
                    raise _Abandoned
                for item in work():
                    results.put((item,))
                results.put(None)
            except BaseException as error:  # the waiting thread raises it
                results.put(error)

        self._worker.do(job)
        deadline = float("inf")
        while time.monotonic() < deadline:
            try:
                item = results.get(timeout=_LOOK_SECONDS)
            except Empty:
                if cancel.is_set():
                    deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            yield item[0]
        raise _Abandoned


class _Abandoned(Exception):
    """The work continues in its thread, and nothing waits for it."""


def _stopped() -> InterruptedAnswer:
    return InterruptedAnswer("Stopped before the answer began.", "Send it again to retry.")


class _Worker:
    """One thread that runs one job after another."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._unfinished = 0
        self._thread = Thread(target=self._run, name="answer", daemon=True)

    @property
    def is_busy(self) -> bool:
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
