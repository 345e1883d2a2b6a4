"""Answers in turn, to their end or to a stop string."""

from threading import Event as Cancel
from typing import Any

import pytest
from support.serving import ANSWER, Serving

from localgemma_cli.conversation import Message
from localgemma_cli.events import Delta, Finished, Timing, TokenLogprob, Usage
from localgemma_cli.sampling import Sampling
from localgemma_cli.serve.answer_queue import answer_events
from localgemma_cli.serve.chat_request import Asked


class Scripted:
    """A backend that says `words`, one by one, unless it is cancelled."""

    def __init__(self, *words: str) -> None:
        self.words, self.said = words, list[str]()

    def stream(self, messages: object, sampling: object, cancel: Cancel) -> Any:
        for word in self.words:
            if cancel.is_set():
                break
            self.said.append(word)
            yield Delta(word)
        logprobs = tuple(TokenLogprob(word, -1.0) for word in self.said)
        reason = "interrupted" if cancel.is_set() else "length"
        yield Finished(reason, Usage(1, 0, len(self.said)), Timing(0.0, None, 0.0), logprobs=logprobs)


def answered(backend: Any, *stops: str) -> tuple[str, Finished]:
    asked = Asked(None, (Message("user", "Hi"),), Sampling(), stops)
    *deltas, finished = answer_events(backend, asked, Cancel())
    assert isinstance(finished, Finished)
    return "".join(each.text for each in deltas if isinstance(each, Delta)), finished


def test_a_stop_string_over_several_pieces_ends_the_answer() -> None:
    backend = Scripted("a b", " S", "TO", "P c", " d", " e")
    text, finished = answered(backend, "never", "STOP")
    assert (text, finished.finish_reason) == ("a b ", "stop")
    assert backend.said == ["a b", " S", "TO", "P c"]
    assert [each.token for each in finished.logprobs or ()] == ["a b"]


def test_what_only_begins_a_stop_string_is_shown_at_the_end() -> None:
    text, finished = answered(Scripted("a ", "ST"), "STOP")
    assert (text, finished.finish_reason) == ("a ST", "length")
    assert len(finished.logprobs or ()) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_string_of_a_real_answer(served: Serving, stream: bool) -> None:
    answer = served.ask(stop=["zzz", "very small"], stream=stream)
    if stream:
        choices = [each["choices"][0] for each in answer.events]
        text, reason = (
            "".join(each["delta"].get("content", "") for each in choices),
            choices[-1]["finish_reason"],
        )
    else:
        (choice,) = answer.json["choices"]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == (ANSWER.partition("very small")[0], "stop")
