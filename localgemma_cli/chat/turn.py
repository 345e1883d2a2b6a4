"""One turn: a conversation in, deltas to a renderer, and out comes the conversation with the turn in it."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event as Cancel

from localgemma_cli.backends.base import Backend
from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import ContextOverflowError
from localgemma_cli.events import Delta, Finished
from localgemma_cli.render.base import Answer, Renderer
from localgemma_cli.sampling import OnOverflow, Sampling


@dataclass(frozen=True)
class Settings:
    """What stays the same from turn to turn; `on_trim` hears how many of the oldest turns have to go."""

    sampling: Sampling
    on_overflow: OnOverflow
    on_trim: Callable[[int], None]


def run_turn(
    backend: Backend,
    conversation: Conversation,
    question: str,
    settings: Settings,
    renderer: Renderer,
    cancel: Cancel,
) -> tuple[Conversation, Answer]:
    """The conversation with the finished or interrupted turn in it; an error leaves it as it was."""
    fitting, dropped = conversation, 0
    while True:
        try:
            answer = _answer(backend, fitting, question, settings, renderer, cancel, dropped)
        except ContextOverflowError:
            if settings.on_overflow is OnOverflow.ERROR or not fitting.turns:
                raise
            fitting, dropped = fitting.without_oldest(), dropped + 1
        else:
            return fitting.with_turn(_turn(question, answer)), answer


def _answer(
    backend: Backend,
    conversation: Conversation,
    question: str,
    settings: Settings,
    renderer: Renderer,
    cancel: Cancel,
    dropped: int,
) -> Answer:
    text: list[str] = []
    announced = not dropped
    try:
        for event in backend.stream(conversation.messages(question), settings.sampling, cancel):
            if not announced:  # only now is it known that what is left fits
                settings.on_trim(dropped)
                announced = True
            match event:
                case Delta(piece):
                    text.append(piece)
                    renderer.delta(piece)
                case Finished():
                    answer = Answer("".join(text), event, dropped)
    except BaseException:
        renderer.abort()
        raise
    renderer.finish(answer)
    return answer


def _turn(question: str, answer: Answer) -> Turn:
    reply = Message("assistant", answer.text, answer.finished.token_ids)
    return Turn(Message("user", question), reply, answer.finished.finish_reason)
