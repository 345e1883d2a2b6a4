"""Opening the saved conversation of a chat: where it is recorded, and what was said in it before."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from localgemma_cli.chat.recording import SessionRecorder
from localgemma_cli.conversation import Conversation
from localgemma_cli.errors import NotFoundError, SavingError
from localgemma_cli.sessions.names import parse_number, validate_name
from localgemma_cli.sessions.opening import open_store
from localgemma_cli.sessions.store import Store, default_path

if TYPE_CHECKING:
    from localgemma_cli.options import Options


def open_session(
    options: "Options",
    model: str,
    system: str | None,
    report: Callable[[SavingError], None],
    *,
    scripted: bool,
) -> tuple[SessionRecorder, Conversation]:
    """The recorder and the conversation so far; `system` replaces the saved system text.

    A script's conversation is saved only if the script names one. Raises NotFoundError for --continue if
    there is none.
    """
    store = _open_store(options, report, scripted=scripted)
    saves = not options.no_save and (options.resumes or not scripted)
    recorder = SessionRecorder(store if saves else None, model, report, asked_only=options.no_save)
    id = _find(options, store) if options.resumes else None
    if store is None or id is None:
        recorder.name = _check_new_name(options.session, store)
        return recorder, Conversation(system)
    recorder.session = id
    conversation = store.conversation(id, model)
    if system is not None:
        recorder.set_system(system)
        conversation = replace(conversation, system=system)
    return recorder, conversation


def _open_store(options: "Options", report: Callable[[SavingError], None], *, scripted: bool) -> Store | None:
    """None if nothing is to be saved or read, or if it cannot be opened and no conversation was named."""
    is_needed = not options.no_save and (options.resumes or not scripted)
    if not is_needed and not (options.resumes and default_path().exists()):
        return None
    try:
        return open_store()
    except SavingError as error:
        if options.resumes:
            raise
        report(error)
        return None


def _find(options: "Options", store: Store | None) -> int | None:
    """The number of the conversation that the user names; None if it is to be created."""
    if options.session is not None:
        return store.named(options.session) if store else None
    latest = store.latest() if store else None
    if latest is None:
        raise NotFoundError("There are no saved conversations yet.", "Start one with: localgemma")
    return latest


def _check_new_name(name: str | None, store: Store | None) -> str | None:
    """The name of the session to be created; raises UsageError if it is not allowed."""
    if name is not None and store is not None and parse_number(name) is not None:
        store.find(name)  # raises NotFoundError with the numbers that exist
    return None if name is None else validate_name(name)
