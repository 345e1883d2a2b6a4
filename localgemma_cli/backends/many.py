"""Many answers from one backend: several at a time where that is faster, else one after the other."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from threading import Event as Cancel
from typing import Protocol, runtime_checkable

from localgemma_cli.backends.base import Backend
from localgemma_cli.conversation import Message
from localgemma_cli.errors import InterruptedAnswer, LocalGemmaError
from localgemma_cli.events import Event, Finished, Reading, Timing, Usage
from localgemma_cli.sampling import Sampling

Request = tuple[Sequence[Message], Sampling]
# A None among the requests: the next one is not ready, answers that have begun go on meanwhile.
Requests = Iterable[Request | None]

# Among the events of an answer that `interleave` runs: it cannot continue before the others have.
WAITING = Reading(0, 0)
_NO_MORE = object()


@runtime_checkable
class ManyBackend(Protocol):
    """A backend that can compute several answers at a time."""

    @property
    def rows(self) -> int:
        """How many answers are worth computing at a time; 1 where one after the other is as fast."""
        ...

    def stream_many(self, requests: Requests, cancel: Cancel) -> Iterator[tuple[int, Event]]:
        """See `stream_all`."""
        ...


def stream_all(backend: Backend, requests: Requests, cancel: Cancel) -> Iterator[tuple[int, Event]]:
    """Answer all requests; yield each event with the index of its request, counted from 0 without None.

    The events of one request come in the order of `Backend.stream`; those of several can alternate. A request
    that fails ends with a `Finished` that has the error, and the others go on. The next request takes the
    place of an answer that has ended. With `cancel` set, answers that have begun end with `Finished`, and no
    more begin. Closing the iterator stops all. Where `requests` yields None and no answer is being computed,
    it is asked again at once: it has to wait itself.
    """
    if isinstance(backend, ManyBackend) and backend.rows > 1:
        yield from backend.stream_many(requests, cancel)
        return
    ready = (request for request in requests if request is not None)
    for index, request in enumerate(ready):
        if cancel.is_set():
            return
        for event in _Answer(backend.stream(*request, cancel)).events():
            yield index, event


def interleave(
    requests: Requests,
    cancel: Cancel,
    rows: int,
    begin: Callable[[int, Request], Iterator[Event]],
    proceed: Callable[[], None],
) -> Iterator[tuple[int, Event]]:
    """`stream_all` for a backend that computes up to `rows` answers at a time.

    `begin` starts an answer in a place, counted from 0, that no other answer has. Its events have `WAITING`
    where it cannot continue; when all wait, `proceed` computes what some of them wait for.
    """
    running = _Running(iter(requests), cancel, rows, begin)
    try:
        while running.fill():
            has_free_place = yield from running.advance()
            if not has_free_place:
                proceed()
    finally:
        for _, answer in running.answers.values():
            answer.close()


class _Running:
    """The answers that have begun and not ended: by place, with the indices of their requests."""

    def __init__(
        self,
        requests: Iterator[Request | None],
        cancel: Cancel,
        rows: int,
        begin: Callable[[int, Request], Iterator[Event]],
    ) -> None:
        self._requests, self._cancel, self._rows, self._begin = requests, cancel, rows, begin
        self._has_more, self._begun = True, 0
        self.answers: dict[int, tuple[int, _Answer]] = {}

    def fill(self) -> bool:
        """Begin as many answers as there are places and requests; return whether any is running."""
        while self._has_more and len(self.answers) < self._rows and not self._cancel.is_set():
            request = next(self._requests, _NO_MORE)
            if isinstance(request, tuple):
                place = next(each for each in range(self._rows) if each not in self.answers)
                self.answers[place] = self._begun, _Answer(self._begin(place, request))
                self._begun += 1
            elif request is not None:
                self._has_more = False
            elif self.answers:
                break
        return bool(self.answers)

    def advance(self) -> Generator[tuple[int, Event], None, bool]:
        """Yield the events of all answers until each waits or ends; return whether one has ended."""
        ended = False
        for place, (index, answer) in list(self.answers.items()):
            for event in answer.events():
                yield index, event
            if answer.has_ended:
                del self.answers[place]
                ended = True
        return ended


class _Answer:
    """The events of one answer, whose failure is the last of them."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events, self._started = events, time.perf_counter()
        self.has_ended = False

    def events(self) -> Iterator[Event]:
        """Up to where the answer waits or ends; none where it was stopped before its prompt was read."""
        try:
            for event in self._events:
                if event is WAITING:
                    return
                yield event
        except InterruptedAnswer:
            pass
        except LocalGemmaError as error:
            seconds = time.perf_counter() - self._started
            yield Finished("error", Usage(None, None, None), Timing(seconds, None, seconds), error=error)
        self.has_ended = True

    def close(self) -> None:
        if isinstance(self._events, Generator):
            self._events.close()
