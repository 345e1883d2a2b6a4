"""Answers in turn: one thread, which runs one answer after another, and a bounded queue before it."""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from threading import Condition, Thread
from threading import Event as Cancel

from localgemma_cli.backends.base import Backend
from localgemma_cli.conversation import Message
from localgemma_cli.events import Delta, Event, Finished, TokenLogprob
from localgemma_cli.prompts.stop_strings import StopStrings
from localgemma_cli.serve.api_error import ApiError, stopping
from localgemma_cli.serve.chat_request import Asked

_KNOWN_ANSWERS = 256
_LONGEST_WAIT = 60  # seconds that a client is asked to wait at most
Deliver = Callable[[Event | BaseException], None]


@dataclass(frozen=True, eq=False)
class Ticket:
    """One request; `deliver` is called in the answering thread, last with `Finished` or an error."""

    asked: Asked
    deliver: Deliver
    cancel: Cancel = field(default_factory=Cancel)


class AnswerQueue:
    """Answers requests in the order in which they come; at most `limit` wait."""

    def __init__(self, backend: Backend, limit: int) -> None:
        self._backend, self._limit = backend, limit
        self._waiting: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._changed = Condition()
        self._seconds = 1.0  # that an answer takes, of the latest ones
        self._stopped = False
        self._known = KnownAnswers()
        self._thread = Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def submit(self, asked: Asked, deliver: Deliver) -> Ticket:
        """Put a request at the end. ApiError (429) where the queue is full, and (503) once it is stopped."""
        ticket = Ticket(asked, deliver)
        with self._changed:
            if self._stopped:
                raise stopping()
            if len(self._waiting) >= self._limit:
                raise self._full()
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop an answer between two tokens, or take it out of the queue; its client has gone."""
        ticket.cancel.set()
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def stop(self) -> None:
        """Stop the running answer, and refuse those that wait."""
        with self._changed:
            self._stopped = True
            waiting, self._waiting = list(self._waiting), deque()
            if self._running is not None:
                self._running.cancel.set()
            self._changed.notify()
        for ticket in waiting:
            ticket.deliver(stopping())

    def _full(self) -> ApiError:
        seconds = min(_LONGEST_WAIT, math.ceil(self._seconds * len(self._waiting)))
        return ApiError(
            429,
            f"{len(self._waiting)} requests are waiting. Try again later, or start the server with a larger"
            " --queue.",
            code="queue_full",
            headers={"Retry-After": str(max(1, seconds))},
        )

    def _run(self) -> None:
        while (ticket := self._next()) is not None:
            started = time.monotonic()
            try:
                asked = replace(ticket.asked, messages=self._known.with_ids(ticket.asked.messages))
                with closing(answer_events(self._backend, asked, ticket.cancel)) as events:
                    for event in self._known.remember(events):
                        ticket.deliver(event)
            except BaseException as error:  # the client gets it
                ticket.deliver(error)
            self._seconds = (self._seconds + time.monotonic() - started) / 2

    def _next(self) -> Ticket | None:
        with self._changed:
            self._running = None
            while not self._waiting and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return None
            self._running = self._waiting.popleft()
            return self._running


class KnownAnswers:
    """The token ids of the latest answers, by their text.

    A client sends an answer back as text, which another tokenization could turn into other ids than the
    model's own: the KV cache could then not be reused from there on.
    """

    def __init__(self) -> None:
        self._ids: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def with_ids(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        return tuple(
            replace(each, token_ids=self._ids.get(each.content)) if each.role == "assistant" else each
            for each in messages
        )

    def remember(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass the events of an answer on, and keep its ids."""
        text = list[str]()
        for event in events:
            if isinstance(event, Delta):
                text.append(event.text)
            elif isinstance(event, Finished) and event.token_ids is not None:
                self._ids["".join(text)] = event.token_ids
                if len(self._ids) > _KNOWN_ANSWERS:
                    self._ids.popitem(last=False)
            yield event


def answer_events(backend: Backend, asked: Asked, cancel: Cancel) -> Generator[Event]:
    """The events of an answer, which ends at the client's stop strings too. `cancel` is then set."""
    text, shown = StopStrings(asked.stops), 0
    for event in backend.stream(asked.messages, asked.sampling, cancel):
        if isinstance(event, Delta):
            piece = "" if text.found else text.add(event.text)
            if text.found:
                cancel.set()
        elif isinstance(event, Finished):
            piece = "" if text.found else text.rest("")
            if text.found:
                logprobs = _within(event.logprobs, shown)
                event = replace(event, finish_reason="stop", token_ids=None, logprobs=logprobs)
        else:
            yield event
            continue
        shown += len(piece)
        if piece:
            yield Delta(piece)
        if isinstance(event, Finished):
            yield event


def _within(logprobs: tuple[TokenLogprob, ...] | None, length: int) -> tuple[TokenLogprob, ...] | None:
    """The tokens of the first `length` characters."""
    if logprobs is None:
        return None
    kept, end = [], 0
    for each in logprobs:
        end += len(each.token)
        if end > length:
            break
        kept.append(each)
    return tuple(kept)
