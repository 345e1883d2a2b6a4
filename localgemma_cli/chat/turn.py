"""One turn: streams an answer to a renderer and adds it to the conversation."""

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
    """The same for every turn; `on_trim` is called with the oldest turns and what happens to them."""

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
    """Ask `question`; returns the conversation with the finished or interrupted turn in it.

    Shortens the conversation if it does not fit the context, according to `settings.on_overflow`.
    """
    fitting = conversation
    dropped: tuple[Turn, ...] = ()
    while True:
        try:
            answer = _stream_answer(backend, fitting.messages(question), settings, renderer, cancel, dropped)
        except ContextOverflowError as error:
            if not fitting.turns:
                raise
            if settings.on_overflow is OnOverflow.ERROR:
                hint = f"{error.hint} --on-overflow trim drops the oldest turns instead."
                raise ContextOverflowError(error.message, hint) from error
            fitting, gone = _shorten(backend, fitting, settings, cancel)
            dropped += gone
        else:
            reply = Message("assistant", answer.text, answer.finished.token_ids)
            turn = Turn(Message("user", question), reply, answer.finished.finish_reason)
            return fitting.with_turn(turn), answer


def continue_turn(
    backend: Backend, conversation: Conversation, settings: TurnSettings, renderer: Renderer, cancel: Cancel
) -> tuple[Conversation, Answer]:
    """Continue the last answer from its last token; it remains one answer."""
    before, last = conversation.without_last(1), conversation.turns[-1]
    messages = (*before.messages(last.question.content), last.answer)
    answer = _stream_answer(backend, messages, settings, renderer, cancel, ())
    whole = last.answer + Message("assistant", answer.text, answer.finished.token_ids)
    turn = replace(last, answer=whole, finish_reason=answer.finished.finish_reason)
    return before.with_turn(turn), answer


def _shorten(
    backend: Backend, conversation: Conversation, settings: TurnSettings, cancel: Cancel
) -> tuple[Conversation, tuple[Turn, ...]]:
    """Drop the oldest turn and return it too; or summarize the older half if it has two turns or more."""
    half = (len(conversation.turns) + 1) // 2
    if settings.on_overflow is OnOverflow.SUMMARIZE and half > 1:
        settings.on_trim(conversation.turns[:half], "being summarized")
        with suppress(ContextOverflowError):  # the older half leaves no room for a summary
            return summarize_turns(backend, conversation, half, settings.sampling, cancel), ()
    return conversation.without_oldest(), conversation.turns[:1]


def _stream_answer(
    backend: Backend,
    messages: Sequence[Message],
    settings: TurnSettings,
    renderer: Renderer,
    cancel: Cancel,
    dropped: Sequence[Turn],
) -> Answer:
    """Send the messages and render what comes; reports `dropped` turns once the answer begins."""
    text: list[str] = []
    thoughts: list[str] = []
    announced = not dropped
    try:
        for event in backend.stream(messages, settings.sampling, cancel):
            if not announced:  # only now is it certain that the rest fits
                settings.on_trim(dropped, "dropped")
                announced = True
            match event:
                case Delta(piece):
                    text.append(piece)
                    renderer.delta(piece)
                case Thinking(piece):
                    thoughts.append(piece)
                    renderer.thinking(piece)
                case Finished():
                    answer = Answer("".join(text), event, "".join(thoughts))
    except BaseException:
        with suppress(OSError):  # the terminal is gone; the first error matters more
            renderer.abort()
        raise
    renderer.finish(answer)
    return answer
