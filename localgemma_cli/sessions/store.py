"""Saved conversations. A turn is saved when its question is asked, so a killed process does not lose it."""

import sqlite3
import struct
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

from localgemma_cli.conversation import Conversation, FinishReason, Message, Turn
from localgemma_cli.environment import data_folder
from localgemma_cli.errors import NotFoundError
from localgemma_cli.sessions.database import Database
from localgemma_cli.sessions.names import parse_number, validate_name
from localgemma_cli.sessions.summaries import (
    Summary,
    handle_of,
    shorten_title,
    summaries_query,
    summary_of,
    turns_query,
)
from localgemma_cli.text import normalize, repair_surrogates


def default_path() -> Path:
    return data_folder() / "conversations.sqlite"


class Store(Database):
    """Every method is one transaction and raises SavingError; two threads may use one store."""

    def together(self) -> AbstractContextManager[None]:
        """One transaction around several calls: all of them take effect, or none."""
        return self.writing()

    def create(self, system: str | None, name: str | None = None, title: str | None = None) -> int:
        """A new session's id. Raises UsageError for an invalid name."""
        valid = None if name is None else validate_name(name)
        with self.writing():
            return self.insert(
                "INSERT INTO sessions (name, title, system, created) VALUES (?, ?, ?, ?)",
                (valid, title, system, time.time()),
            )

    def session(self, name: str | None, system: str | None) -> int:
        """The session of that name, created if missing; two processes that ask at once get the same one."""
        with self.writing():
            id = self.named(name) if name is not None else None
            return self.create(system, name) if id is None else id

    def begin(self, session: int, question: str, model: str) -> int:
        """Add a turn without an answer; its id."""
        with self.writing():
            return self.insert(
                "INSERT INTO turns (session, question, model, created) VALUES (?, ?, ?, ?)",
                (session, question, model, time.time()),
            )

    def stream(self, turn: int, answer: str) -> None:
        """Save the part of the answer that has arrived, still without token ids."""
        with self.writing():
            self.run("UPDATE turns SET answer = ?, tokens = NULL WHERE id = ?", (answer, turn))

    def finish(self, turn: int, answer: Message, reason: FinishReason) -> None:
        with self.writing():
            self.run(
                "UPDATE turns SET answer = ?, tokens = ?, finish = ? WHERE id = ?",
                (answer.content, _pack_ids(answer.token_ids), reason, turn),
            )

    def remove_turns(self, turns: Sequence[int]) -> None:
        with self.writing():
            for turn in turns:
                self.run("DELETE FROM turns WHERE id = ?", (turn,))

    def remove_unused(self, session: int, *, named: bool) -> bool:
        """Remove a session without turns, even with a name or title if `named`; whether it was removed."""
        with self.writing():
            kept = self.rows(
                "SELECT id FROM sessions WHERE id = ? AND (id IN (SELECT session FROM turns)"
                " OR (NOT ? AND ifnull(name, title) IS NOT NULL))",
                (session, named),
            )
            if not kept:
                self.remove(session)
            return not kept

    def remove(self, session: int) -> None:
        with self.writing():
            self.run("DELETE FROM turns WHERE session = ?", (session,))
            self.run("DELETE FROM sessions WHERE id = ?", (session,))

    def rename(self, session: int, *, name: str | None = None, title: str | None = None) -> None:
        """Set the name or the title, or both. Raises SavingError if another session has that name."""
        name = None if name is None else validate_name(name)
        with self.writing():
            for column, value in (("name", name), ("title", title)):
                if value is not None:
                    self.run(f"UPDATE sessions SET {column} = ? WHERE id = ?", (value, session))

    def set_system(self, session: int, system: str | None) -> None:
        with self.writing():
            self.run("UPDATE sessions SET system = ? WHERE id = ?", (system, session))

    def copy(self, session: int, turns: Sequence[Turn], model: str) -> tuple[int, list[int]]:
        """A new session with the same system text and only `turns`; its id, and the ids of its turns."""
        with self.writing():
            row = self.rows("SELECT system, title FROM sessions WHERE id = ?", (session,))[0]
            copied = self.create(row["system"], title=row["title"])
            return copied, [self.add(copied, turn, model) for turn in turns]

    def add(self, session: int, turn: Turn, model: str) -> int:
        """Add a complete turn; its id."""
        with self.writing():
            id = self.begin(session, turn.question.content, model)
            self.finish(id, turn.answer, turn.finish_reason)
            return id

    def import_conversation(self, conversation: Conversation, name: str | None = None) -> int:
        """A new session's id, with all of `conversation` in it."""
        with self.writing():
            session = self.create(conversation.system, name, conversation.title)
            for turn in conversation.turns:
                self.add(session, turn, "")
            return session

    def put(self, session: int, turn: Turn, model: str) -> int:
        """Save a complete turn, finish it if it was saved incomplete, or leave it; its id."""
        with self.writing():
            if turn.saved is None:
                return self.add(session, turn, model)
            if self.rows("SELECT id FROM turns WHERE id = ? AND finish IS NULL", (turn.saved,)):
                self.finish(turn.saved, turn.answer, turn.finish_reason)
            return turn.saved

    def conversation(self, session: int, model: str) -> Conversation:
        """The whole conversation; token ids only for answers of `model`. Unfinished turns are interrupted."""
        with self.reading():
            head = self.rows("SELECT system, title FROM sessions WHERE id = ?", (session,))
            if not head:
                raise NotFoundError(
                    f"Conversation {session} not found.",
                    "List the conversations with: localgemma history list",
                )
            rows = self.rows("SELECT * FROM turns WHERE session = ? ORDER BY id", (session,))
        turns = tuple(_turn(row, model) for row in rows)
        return Conversation(head[0]["system"], turns, head[0]["title"])

    def find(self, wanted: str) -> int:
        """The session of that name or number. Raises NotFoundError."""
        id = self.named(wanted)
        if id is None:
            with self.reading():
                same = self.rows("SELECT id FROM sessions WHERE name = ?", (wanted,))
            raise NotFoundError(
                f"Saved conversation not found: {shorten_title(wanted)!r}.",
                f"The conversation with that name has the number {same[0]['id']}."
                if same
                else "List the conversations with: localgemma history list (in a chat: /sessions)",
            )
        return id

    def named(self, wanted: str) -> int | None:
        """The session of that number or name, else None. Digits are always a number, never an old name."""
        number = parse_number(wanted)
        with self.reading():
            if number is not None:
                rows = self.rows("SELECT id FROM sessions WHERE id = ?", (number,))
            else:
                rows = self.rows("SELECT id FROM sessions WHERE name = ?", (normalize(wanted).strip(),))
        return cast(int, rows[0]["id"]) if rows else None

    def handle(self, session: int) -> str:
        """The name or number that the user can refer to it by."""
        with self.reading():
            rows = self.rows("SELECT name FROM sessions WHERE id = ?", (session,))
        return handle_of(session, rows[0]["name"] if rows else None)

    def last_model(self, session: int) -> str | None:
        """The model of the last turn; None without turns."""
        with self.reading():
            rows = self.rows("SELECT model FROM turns WHERE session = ? ORDER BY id DESC LIMIT 1", (session,))
        return cast(str, rows[0]["model"]) if rows else None

    def latest(self) -> int | None:
        """The session with the newest turn."""
        found = self.summaries(limit=1)
        return found[0].id if found else None

    def summaries(self, query: str = "", limit: int = -1) -> list[Summary]:
        """Latest first; with a `query`, the sessions in which one turn contains every word of it."""
        with (
            self.writing() if query.strip() else self.reading()
        ):  # a search checks the index, which may write
            return [summary_of(row) for row in self.rows(*summaries_query(query, limit))]

    def search(self, query: str) -> list[tuple[int, str, str]]:
        """(session, question, answer) of every turn that contains all words of `query`, latest first."""
        if not query.strip():
            return []
        with self.writing():
            rows = self.rows(*turns_query(query))
        return [(row["session"], row["question"], row["answer"]) for row in rows]


def _turn(row: sqlite3.Row, model: str) -> Turn:
    ids = _unpack_ids(row["tokens"]) if row["model"] == repair_surrogates(model) else None
    reason = cast(FinishReason, row["finish"] or "interrupted")
    return Turn(Message("user", row["question"]), Message("assistant", row["answer"], ids), reason, row["id"])


def _pack_ids(ids: tuple[int, ...] | None) -> bytes | None:
    """Token ids as little-endian 32-bit integers."""
    return None if ids is None else struct.pack(f"<{len(ids)}I", *ids)


def _unpack_ids(data: object) -> tuple[int, ...] | None:
    """The whole ids in `data`. Whether they match the answer's text is for the backend to check."""
    if not isinstance(data, bytes):
        return None
    return struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4])
