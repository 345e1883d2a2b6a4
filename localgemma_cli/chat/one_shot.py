"""One answer, then exit."""

from collections.abc import Callable
from dataclasses import replace
from threading import Event as Cancel

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.interrupt import cancel_on_sigint
from localgemma_cli.chat.recording import SessionRecorder
from localgemma_cli.chat.turn import TurnSettings, run_turn
from localgemma_cli.chat.typed_answer import HiddenRenderer, show_typed
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
    *,
    extract: bool = False,
) -> ExitCode:
    """Answer one prompt; an error that cuts the answer off is raised once the partial answer is written.

    An answer with a constraint, or of which a code block is extracted, is written whole or not at all.
    """
    constraint = settings.sampling.constraint
    typed = extract or constraint is not None
    prepared = replace(conversation, system=system_for(mode, conversation.system))
    with (
        cancel_on_sigint(cancel, second_raises=True),  # before the first byte is written
        recorder.record_question(prompt, conversation.system) as recording,
    ):
        renderer = TeeRenderer(HiddenRenderer() if typed else make_renderer(), recording)
        try:
            _, answer = run_turn(backend, prepared, prompt, settings, renderer, cancel)
        except InterruptedAnswer:  # before it began; JSON output still gets its end
            answer = Answer("", Finished("interrupted", Usage(None, None, None), Timing(0.0, None, 0.0)))
            renderer.finish(answer)
    if typed:
        show_typed(answer, constraint, make_renderer)
    if answer.finished.error is not None:
        raise answer.finished.error
    if recorder.failed:  # the answer is complete but not saved
        return ExitCode.FAILURE
    return ExitCode.INTERRUPTED if answer.finished.finish_reason == "interrupted" else ExitCode.OK
