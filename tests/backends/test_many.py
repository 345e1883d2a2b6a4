"""Many answers from one backend: the plain way, one after the other."""

from collections.abc import Iterator, Sequence
from threading import Event as Cancel

from localgemma_cli.backends.many import Requests, stream_all
from localgemma_cli.conversation import Message
from localgemma_cli.errors import ContextOverflowError
from localgemma_cli.events import Delta, Event, Finished, Timing, Usage
from localgemma_cli.sampling import Sampling

DONE = Finished("stop", Usage(1, 0, 1), Timing(0.1, None, 0.1))


class Echo:
    """Answers with the prompt; refuses "long"; "stop" sets the cancel event."""

    name, note, continues, context_length = "echo", None, False, 10

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        text = messages[-1].content
        if text == "long":
            raise ContextOverflowError("Too long.", "Shorten it.")
        if text == "stop":
            cancel.set()
        yield Delta(text)
        yield DONE

    def count(self, messages: Sequence[Message]) -> None: ...
    def recognizes(self, answer: Message) -> bool:
        return False

    def prompt(self, messages: Sequence[Message]) -> None: ...


class Together(Echo):
    rows = 2

    def stream_many(self, requests: Requests, cancel: Cancel) -> Iterator[tuple[int, Event]]:
        yield 7, DONE


def ask(*texts: str | None) -> Requests:
    return [text and ([Message("user", text)], Sampling()) for text in texts]


def test_requests_are_answered_in_order_and_a_failed_one_stops_no_other() -> None:
    events = list(stream_all(Echo(), ask("one", None, "long", "two"), Cancel()))
    assert [(0, Delta("one")), (0, DONE)] == events[:2]
    assert [(2, Delta("two")), (2, DONE)] == events[3:]
    index, failed = events[2]
    assert index == 1
    assert isinstance(failed, Finished)
    assert (failed.finish_reason, failed.usage) == ("error", Usage(None, None, None))
    assert isinstance(failed.error, ContextOverflowError)


def test_no_answer_begins_after_cancel() -> None:
    assert len(list(stream_all(Echo(), ask("stop", "two"), Cancel()))) == 2


def test_a_backend_that_can_computes_several_at_a_time() -> None:
    assert list(stream_all(Together(), ask("one"), Cancel())) == [(7, DONE)]
