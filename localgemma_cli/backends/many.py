"""Many answers from one backend: several at a time where that is faster, else one after the other."""

import time
from collections.abc import Iterable, Iterator, Sequence
from threading import Event as Cancel
from typing import Protocol, runtime_checkable

from localgemma_cli.backends.base import Backend
from localgemma_cli.conversation import Message
from localgemma_cli.errors import InterruptedAnswer, LocalGemmaError
from localgemma_cli.events import Event, Finished, Timing, Usage
from localgemma_cli.sampling import Sampling

Request = tuple[Sequence[Message], Sampling]
# A None among the requests: the next one is not ready, answers that have begun go on meanwhile.
Requests = Iterable[Request | None]


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
    for index, (messages, sampling) in enumerate(ready):
        if cancel.is_set():
            return
        started = time.perf_counter()
        try:
            for event in backend.stream(messages, sampling, cancel):
                yield index, event
        except InterruptedAnswer:  # before the prompt was read
            return
        except LocalGemmaError as error:
            yield index, failed_answer(error, time.perf_counter() - started)


def failed_answer(error: LocalGemmaError, seconds: float) -> Finished:
    """The only event of a request that failed before its first token, after so many seconds."""
    return Finished("error", Usage(None, None, None), Timing(seconds, None, seconds), error=error)
