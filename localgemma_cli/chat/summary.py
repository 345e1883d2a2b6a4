"""Old turns replaced by a summary that the model writes itself."""

from collections.abc import Iterator
from dataclasses import replace
from threading import Event as Cancel

from localgemma_cli.backends.base import Backend
from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import InterruptedAnswer
from localgemma_cli.events import Delta, Event, Finished
from localgemma_cli.sampling import Sampling

_WISH = (
    "Summarize our conversation so far for yourself: names, facts, decisions and open questions, in short"
    " sentences. Write nothing else."
)
_QUESTION = "What have we said so far?"
_LONGEST = 512  # tokens


def summarize_turns(
    backend: Backend, conversation: Conversation, count: int, sampling: Sampling, cancel: Cancel
) -> Conversation:
    """The first `count` turns as one turn; InterruptedAnswer where `cancel` came first."""
    old = replace(conversation, turns=conversation.turns[:count])
    short = replace(sampling, max_new_tokens=_LONGEST)
    text, finished = _collected(backend.stream(old.messages(_WISH), short, cancel))
    if finished.finish_reason == "interrupted":
        raise InterruptedAnswer("Nothing was summarized.", "The conversation is as it was.")
    if finished.error is not None:
        raise finished.error
    summary = Turn(Message("user", _QUESTION), Message("assistant", text, finished.token_ids), "stop")
    return replace(conversation, turns=(summary, *conversation.turns[count:]))


def _collected(events: Iterator[Event]) -> tuple[str, Finished]:
    text = ""
    for event in events:
        match event:
            case Delta(piece):
                text += piece
            case Finished():
                return text, event
    raise AssertionError("an answer ends with `Finished`")
