"""One answer, then exit."""

from collections.abc import Callable
from dataclasses import replace
from threading import Event as Cancel

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.interrupt import cancel_on_sigint
from localgemma_cli.chat.recording import SessionRecorder
from localgemma_cli.chat.turn import TurnSettings, run_turn
from localgemma_cli.conversation import Conversation
from localgemma_cli.errors import ExitCode, InterruptedAnswer
from localgemma_cli.events import Finished, Timing, Usage
from localgemma_cli.render.base import Answer, Renderer, TeeRenderer
from localgemma_cli.sampling import Mode, system_for


def answer_once(
    backend: Backend,
    conversation: Conversation,
    mode: Mode,
    prompt: str,
    settings: TurnSettings,
    make_renderer: Callable[[], Renderer],
    recorder: SessionRecorder,
    cancel: Cancel,
) -> ExitCode:
    """Raises what cut the answer off, after the part that came was written."""
    told = replace(conversation, system=system_for(mode, conversation.system))
    with (
        cancel_on_sigint(cancel, second_raises=True),  # before the first byte is written
        recorder.question(prompt, conversation.system) as recording,
    ):
        renderer = TeeRenderer(make_renderer(), recording)
        try:
            _, answer = run_turn(backend, told, prompt, settings, renderer, cancel)
        except InterruptedAnswer:  # before it began; who reads an envelope is told of its end all the same
            answer = Answer("", Finished("interrupted", Usage(None, None, None), Timing(0.0, None, 0.0)))
            renderer.finish(answer)
    if answer.finished.error is not None:
        raise answer.finished.error
    if recorder.failed:  # what was asked for is only half done
        return ExitCode.FAILURE
    return ExitCode.INTERRUPTED if answer.finished.finish_reason == "interrupted" else ExitCode.OK
