"""Conversations on disk, turn by turn as they happen; what a process was killed in the middle of included."""

import sqlite3
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import cast

from localgemma_cli.conversation import Conversation, FinishReason, Message, Turn
from localgemma_cli.environment import data_folder
from localgemma_cli.errors import NotFoundError, SavingError
from localgemma_cli.sessions.names import as_number, checked_name
from localgemma_cli.sessions.schema import connect, is_of_the_index, mend_index, rebuild_index, transaction
from localgemma_cli.sessions.titles import subject_of
from localgemma_cli.text import normalize, repair_surrogates

_LOOK_SECONDS = 0.1
_TITLE_LENGTH = 60  # characters of the first question, where nobody gave a title


@dataclass(frozen=True)
class Summary:
    """One line of a list; `name` is the user's own, `updated` in seconds since 1970."""

    id: int
    name: str | None
    title: str
    turns: int
    updated: float
    model: str

    @property
    def handle(self) -> str:
        """What it is found by: its name, if that is no number."""
        return _handle(self.id, self.name)


def default_path() -> Path:
    return data_folder() / "conversations.sqlite"


class Store:
    """May be used from two threads; every method is one transaction, and raises SavingError."""

    def __init__(self, path: Path) -> None:
        self._connection, self.notice = connect(path)
        self._path, self._lock = path, RLock()
        self._index_is_checked = False
        self.waiting: Callable[[], None] = lambda: None  # called while another writes; may raise

    def together(self) -> AbstractContextManager[None]:
        """Around several calls: one transaction, all of them or none."""
        return self._writing()

    def close(self) -> None:
        self._connection.close()

    def create(self, system: str | None, name: str | None = None, title: str | None = None) -> int:
        """A new session's id; UsageError for a name that cannot be one."""
        checked = None if name is None else checked_name(name)
        with self._writing():
            return self._inserted(
                "INSERT INTO sessions (name, title, system, created) VALUES (?, ?, ?, ?)",
                (checked, title, system, time.time()),
            )

    def session(self, name: str | None, system: str | None) -> int:
        """The session of that name, a new one where there is none; of two who ask at once, one makes it."""
        with self._writing():
            id = self.named(name) if name is not None else None
            return self.create(system, name) if id is None else id

    def begin(self, session: int, question: str, model: str) -> int:
        """A turn's id, its answer still to come."""
        with self._writing():
            return self._inserted(
                "INSERT INTO turns (session, question, model, created) VALUES (?, ?, ?, ?)",
                (session, question, model, time.time()),
            )

    def stream(self, turn: int, answer: str) -> None:
        """The answer as far as it has come; its ids are not known before its end."""
        with self._writing():
            self._run("UPDATE turns SET answer = ?, tokens = NULL WHERE id = ?", (answer, turn))

    def finish(self, turn: int, answer: Message, reason: FinishReason) -> None:
        with self._writing():
            self._run(
                "UPDATE turns SET answer = ?, tokens = ?, finish = ? WHERE id = ?",
                (answer.content, _packed(answer.token_ids), reason, turn),
            )

    def remove_turns(self, turns: Sequence[int]) -> None:
        with self._writing():
            for turn in turns:
                self._run("DELETE FROM turns WHERE id = ?", (turn,))

    def remove_unused(self, session: int, *, named: bool) -> bool:
        """Remove a session without turns, also one with a name or title if `named`; whether it is gone."""
        with self._writing():
            kept = self._rows(
                "SELECT id FROM sessions WHERE id = ? AND (id IN (SELECT session FROM turns)"
                " OR (NOT ? AND ifnull(name, title) IS NOT NULL))",
                (session, named),
            )
            if not kept:
                self.remove(session)
            return not kept

    def remove(self, session: int) -> None:
        with self._writing():
            self._run("DELETE FROM turns WHERE session = ?", (session,))
            self._run("DELETE FROM sessions WHERE id = ?", (session,))

    def rename(self, session: int, *, name: str | None = None, title: str | None = None) -> None:
        """NAME and title as far as they are given; SavingError where the name is another session's."""
        name = None if name is None else checked_name(name)
        with self._writing():
            for column, value in (("name", name), ("title", title)):
                if value is not None:
                    self._run(f"UPDATE sessions SET {column} = ? WHERE id = ?", (value, session))

    def set_system(self, session: int, system: str | None) -> None:
        with self._writing():
            self._run("UPDATE sessions SET system = ? WHERE id = ?", (system, session))

    def copy(self, session: int, turns: Sequence[Turn], model: str) -> tuple[int, list[int]]:
        """A new session with the same system text and just `turns`; their places in it."""
        with self._writing():
            row = self._rows("SELECT system, title FROM sessions WHERE id = ?", (session,))[0]
            copied = self.create(row["system"], title=row["title"])
            return copied, [self.add(copied, turn, model) for turn in turns]

    def add(self, session: int, turn: Turn, model: str) -> int:
        """A whole turn at once."""
        with self._writing():
            id = self.begin(session, turn.question.content, model)
            self.finish(id, turn.answer, turn.finish_reason)
            return id

    def import_conversation(self, conversation: Conversation, name: str | None = None) -> int:
        """A new session with all of `conversation`, or nothing."""
        with self._writing():
            session = self.create(conversation.system, name, conversation.title)
            for turn in conversation.turns:
                self.add(session, turn, "")
            return session

    def put(self, session: int, turn: Turn, model: str) -> int:
        """A whole turn's place: the one it has, its end written if that is missing, or a new one."""
        with self._writing():
            if turn.saved is None:
                return self.add(session, turn, model)
            if self._rows("SELECT id FROM turns WHERE id = ? AND finish IS NULL", (turn.saved,)):
                self.finish(turn.saved, turn.answer, turn.finish_reason)
            return turn.saved

    def conversation(self, session: int, model: str) -> Conversation:
        """What was said; token ids only where `model` wrote them, and a turn cut off is interrupted."""
        with self._reading():
            head = self._rows("SELECT system, title FROM sessions WHERE id = ?", (session,))
            if not head:
                raise NotFoundError(f"There is no conversation {session}.", "See `localgemma history list`.")
            rows = self._rows("SELECT * FROM turns WHERE session = ? ORDER BY id", (session,))
        turns = tuple(_turn(row, model) for row in rows)
        return Conversation(head[0]["system"], turns, head[0]["title"])

    def find(self, wanted: str) -> int:
        """The session of that name or number; NotFoundError where there is none."""
        id = self.named(wanted)
        if id is None:
            with self._reading():
                same = self._rows("SELECT id FROM sessions WHERE name = ?", (wanted,))
            raise NotFoundError(
                f"There is no saved conversation {_cut(wanted)!r}.",
                f"The one with that name has the number {same[0]['id']}."
                if same
                else "See `localgemma history list`, or /sessions in a chat.",
            )
        return id

    def named(self, wanted: str) -> int | None:
        """The session of that number or name, else None; a number is no name, as it could be before."""
        number = as_number(wanted)
        with self._reading():
            if number is not None:
                rows = self._rows("SELECT id FROM sessions WHERE id = ?", (number,))
            else:
                rows = self._rows("SELECT id FROM sessions WHERE name = ?", (normalize(wanted).strip(),))
        return cast(int, rows[0]["id"]) if rows else None

    def handle(self, session: int) -> str:
        """As a summary's."""
        with self._reading():
            rows = self._rows("SELECT name FROM sessions WHERE id = ?", (session,))
        return _handle(session, rows[0]["name"] if rows else None)

    def last_model(self, session: int) -> str | None:
        """Whose the last answer there is."""
        with self._reading():
            rows = self._rows(
                "SELECT model FROM turns WHERE session = ? ORDER BY id DESC LIMIT 1", (session,)
            )
        return cast(str, rows[0]["model"]) if rows else None

    def latest(self) -> int | None:
        """The session that was spoken in last."""
        found = self.summaries(limit=1)
        return found[0].id if found else None

    def summaries(self, query: str = "", limit: int = -1) -> list[Summary]:
        """Latest first; with a `query`, those in which every word of it occurs in one turn."""
        matching = ""
        values: tuple[str, ...] = ()
        if words := _phrases(query):
            matching = (
                f"HAVING sum(t.id IN ({_MATCHING}))"
                " OR instr(lower(ifnull(s.title, '') || char(10) || ifnull(s.name, '')), lower(?))"
            )
            values = (words, query, query.strip())
        with self._writing() if words else self._reading():
            rows = self._rows(
                f"{_SUMMARIES} {matching} ORDER BY last DESC, s.id DESC LIMIT ?", (*values, limit)
            )
        return [_summary(row) for row in rows]

    def search(self, query: str) -> list[tuple[int, str, str]]:
        """(session, question, answer) of every turn that has all the words of `query`, latest first."""
        words = _phrases(query)
        if not words:
            return []
        with self._writing():
            rows = self._rows(
                f"SELECT session, question, answer FROM turns WHERE id IN ({_MATCHING}) ORDER BY id DESC",
                (words, query),
            )
        return [(row["session"], row["question"], row["answer"]) for row in rows]

    def _inserted(self, statement: str, values: Sequence[object]) -> int:
        return cast(int, self._written(statement, values).lastrowid)

    def _run(self, statement: str, values: Sequence[object]) -> None:
        self._written(statement, values)

    def _written(self, statement: str, values: Sequence[object]) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, _storable(values))
        except sqlite3.DatabaseError as error:  # by the triggers: not all damage is seen by the check
            if not (is_of_the_index(error) and self._connection.in_transaction):
                raise
            rebuild_index(self._connection)
            return self._connection.execute(statement, _storable(values))

    def _rows(self, statement: str, values: Sequence[object]) -> list[sqlite3.Row]:
        cursor = self._connection.cursor()
        cursor.row_factory = sqlite3.Row
        return cursor.execute(statement, _storable(values)).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        while not self._lock.acquire(timeout=_LOOK_SECONDS):
            self.waiting()
        try:
            yield
        except sqlite3.Error as error:
            raise self._failed(error) from error
        finally:
            self._lock.release()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._reading():
            if self._connection.in_transaction:  # a method that calls another
                yield
            else:
                with transaction(self._connection, self.waiting):
                    self._check_index()
                    yield

    def _check_index(self) -> None:
        """Once, before what needs it: it takes ten times as long as to open the file."""
        if not self._index_is_checked:
            mend_index(self._connection)
            self._index_is_checked = True

    def _failed(self, error: sqlite3.Error) -> SavingError:
        if isinstance(error, sqlite3.IntegrityError) and "sessions.name" in str(error):
            return SavingError("Another conversation has that name.", "Choose another, or /load that one.")
        return SavingError(
            f"The conversations in {self._path} cannot be used: {error}.",
            "Check the disk and the file; `--no-save` chats without it.",
        )


_MATCHING = (
    "SELECT rowid FROM words WHERE words MATCH ? UNION "
    "SELECT id FROM turns WHERE finish IS NULL AND instr(lower(question || ' ' || answer), lower(?))"
)
_SUMMARIES = (
    "SELECT s.id, s.name, s.title, count(t.id) AS turns, ifnull(max(t.created), s.created) AS updated,"
    " max(t.id) AS last,"  # ids only grow, while a clock may be set back
    " (SELECT question FROM turns WHERE session = s.id ORDER BY id LIMIT 1) AS first,"
    " (SELECT model FROM turns WHERE session = s.id ORDER BY id DESC LIMIT 1) AS model"
    " FROM sessions s LEFT JOIN turns t ON t.session = s.id GROUP BY s.id"
)


def _phrases(query: str) -> str:
    """The words of `query` as FTS5 reads them literally, the last one perhaps unfinished."""
    words = ['"' + word.replace('"', '""') + '"' for word in query.split()]
    return " ".join(words) + "*" if words else ""


def _storable(values: Sequence[object]) -> list[object]:
    """SQLite has no halves of characters; a name or a model's path may hold some."""
    return [repair_surrogates(each) if isinstance(each, str) else each for each in values]


def _summary(row: sqlite3.Row) -> Summary:
    title = row["title"] or _cut(subject_of(row["first"] or ""))
    return Summary(row["id"], row["name"], title, row["turns"], row["updated"], row["model"] or "")


def _handle(id: int, name: str | None) -> str:
    return str(id) if name is None or as_number(name) is not None else name


def _cut(text: str) -> str:
    return text if len(text) <= _TITLE_LENGTH else f"{text[:_TITLE_LENGTH]}…"


def _turn(row: sqlite3.Row, model: str) -> Turn:
    ids = _unpacked(row["tokens"]) if row["model"] == repair_surrogates(model) else None
    reason = cast(FinishReason, row["finish"] or "interrupted")
    return Turn(Message("user", row["question"]), Message("assistant", row["answer"], ids), reason, row["id"])


def _packed(ids: tuple[int, ...] | None) -> bytes | None:
    """Little-endian, 32 bits each."""
    return None if ids is None else struct.pack(f"<{len(ids)}I", *ids)


def _unpacked(data: object) -> tuple[int, ...] | None:
    """As far as they are whole: a backend finds out whether they say what was said."""
    if not isinstance(data, bytes):
        return None
    return struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4])
