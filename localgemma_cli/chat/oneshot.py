"""One answer, then exit."""

from collections.abc import Callable
from threading import Event as Cancel

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.interrupt import cancelling
from localgemma_cli.chat.turn import Settings, run_turn
from localgemma_cli.conversation import Conversation
from localgemma_cli.errors import ExitCode
from localgemma_cli.render.base import Renderer


def answer_once(
    backend: Backend,
    system: str | None,
    prompt: str,
    settings: Settings,
    make_renderer: Callable[[], Renderer],
) -> ExitCode:
    """Raises what cut the answer off, after the part that came was written."""
    cancel = Cancel()
    with cancelling(cancel, second_raises=True):  # before the first byte is written
        _, answer = run_turn(backend, Conversation(system), prompt, settings, make_renderer(), cancel)
    if answer.finished.error is not None:
        raise answer.finished.error
    return ExitCode.INTERRUPTED if answer.finished.finish_reason == "interrupted" else ExitCode.OK
