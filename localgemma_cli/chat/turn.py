"""One turn: a conversation in, deltas to a renderer, and out comes the conversation with the turn in it."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Event as Cancel

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.summary import summarize_turns
from localgemma_cli.conversation import Conversation, Message, Turn
from localgemma_cli.errors import ContextOverflowError
from localgemma_cli.events import Delta, Finished, Thinking
from localgemma_cli.render.base import Answer, Renderer
from localgemma_cli.sampling import OnOverflow, Sampling


@dataclass(frozen=True)
class TurnSettings:
    """What stays the same from turn to turn; `on_trim` hears which of the oldest turns go, and how."""

    sampling: Sampling
    on_overflow: OnOverflow
    on_trim: Callable[[Sequence[Turn], str], None]


def run_turn(
    backend: Backend,
    conversation: Conversation,
    question: str,
    settings: TurnSettings,
    renderer: Renderer,
    cancel: Cancel,
) -> tuple[Conversation, Answer]:
    """The conversation with the finished or interrupted turn in it; an error leaves it as it was."""
    fitting = conversation
    dropped: tuple[Turn, ...] = ()
    while True:
        try:
            answer = _answer(backend, fitting.messages(question), settings, renderer, cancel, dropped)
        except ContextOverflowError as error:
            if not fitting.turns:
                raise
            if settings.on_overflow is OnOverflow.ERROR:
                hint = f"{error.hint} --on-overflow trim drops the oldest turns instead."
                raise ContextOverflowError(error.message, hint) from error
            fitting, gone = _shortened(backend, fitting, settings, cancel)
            dropped += gone
        else:
            reply = Message("assistant", answer.text, answer.finished.token_ids)
            turn = Turn(Message("user", question), reply, answer.finished.finish_reason)
            return fitting.with_turn(turn), answer


def continue_turn(
    backend: Backend, conversation: Conversation, settings: TurnSettings, renderer: Renderer, cancel: Cancel
) -> tuple[Conversation, Answer]:
    """The last answer goes on from its last token, and stays one answer."""
    before, last = conversation.without_last(1), conversation.turns[-1]
    messages = (*before.messages(last.question.content), last.answer)
    answer = _answer(backend, messages, settings, renderer, cancel, ())
    whole = last.answer + Message("assistant", answer.text, answer.finished.token_ids)
    turn = replace(last, answer=whole, finish_reason=answer.finished.finish_reason)
    return before.with_turn(turn), answer


def _shortened(
    backend: Backend, conversation: Conversation, settings: TurnSettings, cancel: Cancel
) -> tuple[Conversation, tuple[Turn, ...]]:
    """Without its oldest turn, which is given too; or its older half, two turns or more, as a summary."""
    half = (len(conversation.turns) + 1) // 2
    if settings.on_overflow is OnOverflow.SUMMARIZE and half > 1:
        settings.on_trim(conversation.turns[:half], "being summarized")
        with suppress(ContextOverflowError):  # not even the older half leaves room to sum it up
            return summarize_turns(backend, conversation, half, settings.sampling, cancel), ()
    return conversation.without_oldest(), conversation.turns[:1]


def _answer(
    backend: Backend,
    messages: Sequence[Message],
    settings: TurnSettings,
    renderer: Renderer,
    cancel: Cancel,
    dropped: Sequence[Turn],
) -> Answer:
    text: list[str] = []
    thought: list[str] = []
    announced = not dropped
    try:
        for event in backend.stream(messages, settings.sampling, cancel):
            if not announced:  # only now is it known that what is left fits
                settings.on_trim(dropped, "left out")
                announced = True
            match event:
                case Delta(piece):
                    text.append(piece)
                    renderer.delta(piece)
                case Thinking(piece):
                    thought.append(piece)
                    renderer.thinking(piece)
                case Finished():
                    answer = Answer("".join(text), event, "".join(thought))
    except BaseException:
        with suppress(OSError):  # the terminal is gone, which is no reason to lose the first one
            renderer.abort()
        raise
    renderer.finish(answer)
    return answer
