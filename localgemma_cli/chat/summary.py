"""Replaces old turns with a summary that the model writes."""

from collections.abc import Iterator
from dataclasses import replace
from threading import Event as Cancel

from localgemma_cli.backends.base import Backend
from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import InterruptedAnswer
from localgemma_cli.events import Delta, Event, Finished
from localgemma_cli.sampling import Sampling

_REQUEST = (
    "Summarize our conversation so far for yourself: names, facts, decisions and open questions, in short"
    " sentences. Write nothing else."
)
_QUESTION = "What have we said so far?"
_LONGEST_SUMMARY = 512  # tokens


def summarize_turns(
    backend: Backend, conversation: Conversation, count: int, sampling: Sampling, cancel: Cancel
) -> Conversation:
    """Replace the first `count` turns with one; raises InterruptedAnswer if `cancel` is set first."""
    old = replace(conversation, turns=conversation.turns[:count])
    short = replace(sampling, max_new_tokens=_LONGEST_SUMMARY)
    text, finished = _collect(backend.stream(old.messages(_REQUEST), short, cancel))
    if finished.finish_reason == "interrupted":
        raise InterruptedAnswer("Nothing was summarized.", "The conversation is unchanged.")
    if finished.error is not None:
        raise finished.error
    summary = Turn(Message("user", _QUESTION), Message("assistant", text, finished.token_ids), "stop")
    return replace(conversation, turns=(summary, *conversation.turns[count:]))


def _collect(events: Iterator[Event]) -> tuple[str, Finished]:
    """The whole text, and the last event."""
    text = ""
    for event in events:
        match event:
            case Delta(piece):
                text += piece
            case Finished():
                return text, event
    raise AssertionError("an answer ends with `Finished`")
