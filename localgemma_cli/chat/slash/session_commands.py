"""The slash commands that have to do with saved conversations."""

import shlex
import time
from dataclasses import replace

from localgemma_cli.chat.chat_session import ChatSession
from localgemma_cli.chat.slash.outcome import CommandContext, counted, paths, takes
from localgemma_cli.environment import expand_home
from localgemma_cli.errors import NotFoundError, SavingError, UsageError
from localgemma_cli.sanitize import one_line
from localgemma_cli.sessions.export_file import write_new_file
from localgemma_cli.sessions.formats import format_conversation, format_of
from localgemma_cli.sessions.opening import open_store
from localgemma_cli.sessions.store import Store, default_path

_LISTED = 20  # conversations


def save(session: ChatSession, facts: CommandContext, argument: str) -> None:
    id, session.conversation = session.recorder.keep(session.conversation, session.system, argument or None)
    name = f" as {one_line(argument)}" if argument else ""
    found_by = argument or session.recorder.attempt(lambda store: store.handle(id)) or str(id)
    again = one_line(shlex.quote(found_by))
    session.say(f"[saved{name}: localgemma --session {again} goes on with it]")


def title(session: ChatSession, facts: CommandContext, argument: str) -> None:
    if not argument:
        raise takes("/title")
    store, id = _kept(session)
    store.rename(id, title=argument)
    session.conversation = replace(session.conversation, title=argument)
    session.say(f"[title: {one_line(argument)}]")


def sessions(session: ChatSession, facts: CommandContext, argument: str) -> None:
    found = _store(session).summaries(argument, limit=_LISTED)
    for each in found:
        here = "*" if each.id == session.recorder.session else " "
        name = f"{one_line(each.name)}: " if each.name else ""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.updated))
        session.say(
            f"{here}{each.id:>4}  {when}  {counted(each.turns, 'turn'):>9}  {name}{one_line(each.title)}"
        )
    if not found:
        session.say("No saved conversation has that." if argument else "Nothing is saved yet.")


def load(session: ChatSession, facts: CommandContext, argument: str) -> None:
    if not argument:
        raise takes("/load")
    store = _store(session)
    id = store.find(argument)
    conversation = store.conversation(id, session.recorder.model)
    session.fresh(conversation, id)
    session.set_system(conversation.system)
    session.say(f"[conversation {id}, {counted(len(conversation.turns), 'turn')}]")
    session.replay()


def export(session: ChatSession, facts: CommandContext, argument: str) -> None:
    if not argument:
        raise takes("/export")
    if not session.conversation.turns:
        raise UsageError("There is nothing to export yet.", "Ask something first.")
    names = paths(argument)
    if len(names) != 1:
        raise takes("/export")
    path = expand_home(names[0])
    write_new_file(path, format_conversation(session.conversation, format_of(path.name)))
    session.say(f"[written: {one_line(str(path))}]")


def _store(session: ChatSession) -> Store:
    """What is saved may be read also where no more is to be saved; no file is made for that."""
    if session.recorder.store is None and not default_path().exists():
        raise NotFoundError("Nothing is saved yet.", "/save saves this conversation.")
    return session.recorder.store or open_store()


def _kept(session: ChatSession) -> tuple[Store, int]:
    store, id = session.recorder.store, session.recorder.session
    if store is None:
        raise SavingError("This conversation is not saved.", "/save saves it.")
    if id is None:
        raise UsageError("There is nothing to give a title to yet.", "Ask something first.")
    return store, id
