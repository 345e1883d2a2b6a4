"""The slash commands for saved conversations."""

import time
from dataclasses import replace

from localgemma_cli.chat.chat_session import ChatSession
from localgemma_cli.chat.phrases import format_count, resume_hint
from localgemma_cli.chat.slash.arguments import argument_error, split_paths
from localgemma_cli.chat.slash.outcome import CommandContext
from localgemma_cli.environment import expand_home
from localgemma_cli.errors import NotFoundError, SavingError, UsageError
from localgemma_cli.sanitize import one_line
from localgemma_cli.sessions.export_file import write_new_file
from localgemma_cli.sessions.formats import format_conversation, format_of
from localgemma_cli.sessions.opening import open_store
from localgemma_cli.sessions.store import Store, default_path

_LISTED = 20  # conversations


def save_session(session: ChatSession, context: CommandContext, argument: str) -> None:
    id, session.conversation = session.recorder.save_all(
        session.conversation, session.system, argument or None
    )
    name = f" as {one_line(argument)}" if argument else ""
    handle = argument or session.recorder.attempt(lambda store: store.handle(id)) or str(id)
    session.say(f"[saved{name}; {resume_hint(handle)}]")


def set_title(session: ChatSession, context: CommandContext, argument: str) -> None:
    if not argument:
        raise argument_error("/title")
    store, id = _saved(session)
    store.rename(id, title=argument)
    session.conversation = replace(session.conversation, title=argument)
    session.say(f"[title: {one_line(argument)}]")


def list_sessions(session: ChatSession, context: CommandContext, argument: str) -> None:
    found = _store(session).summaries(argument, limit=_LISTED)
    for each in found:
        here = "*" if each.id == session.recorder.session else " "
        name = f"{one_line(each.name)}: " if each.name else ""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.updated))
        session.say(
            f"{here}{each.id:>4}  {when}  {format_count(each.turns, 'turn'):>9}  {name}{one_line(each.title)}"
        )
    if not found:
        session.say("No saved conversation matches." if argument else "There are no saved conversations yet.")


def load_session(session: ChatSession, context: CommandContext, argument: str) -> None:
    if not argument:
        raise argument_error("/load")
    store = _store(session)
    id = store.find(argument)
    conversation = store.conversation(id, session.recorder.model)
    session.switch_conversation(conversation, id)
    session.set_system(conversation.system)
    session.say(f"[resumed conversation {id}, {format_count(len(conversation.turns), 'turn')}]")
    session.replay()


def export_session(session: ChatSession, context: CommandContext, argument: str) -> None:
    if not argument:
        raise argument_error("/export")
    if not session.conversation.turns:
        raise UsageError("There is nothing to export yet.", "Ask something first.")
    names = split_paths(argument)
    if len(names) != 1:
        raise argument_error("/export")
    path = expand_home(names[0])
    write_new_file(path, format_conversation(session.conversation, format_of(path.name)))
    session.say(f"[written: {one_line(str(path))}]")


def _store(session: ChatSession) -> Store:
    """The saved conversations, also if this chat is not saved; never creates their file."""
    if session.recorder.store is None and not default_path().exists():
        raise NotFoundError("There are no saved conversations yet.", "Save this one with /save.")
    return session.recorder.store or open_store()


def _saved(session: ChatSession) -> tuple[Store, int]:
    """Where this conversation is saved: the store and its number there."""
    store, id = session.recorder.store, session.recorder.session
    if store is None:
        raise SavingError("This conversation is not saved.", "Save it with /save.")
    if id is None:
        raise UsageError("The conversation is empty.", "Ask something first.")
    return store, id
