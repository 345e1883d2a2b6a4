"""The tables of saved conversations and their migrations, counted by SQLite's `user_version`."""

import sqlite3
from contextlib import closing

from localgemma_cli.sessions.transaction import transaction

_HIGHEST_VERSION = 100  # a larger `user_version` is damage, not a later version of localgemma

# A turn is inserted when its question is asked; `finish` is null until the answer is complete. The full-text
# index `words` holds finished turns only, so that a turn is always indexed as a whole.
_MIGRATIONS = (
    """
    CREATE TABLE sessions (
        id INTEGER PRIMARY KEY, name TEXT UNIQUE, title TEXT, system TEXT, created REAL NOT NULL
    );
    CREATE TABLE turns (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
        question TEXT NOT NULL, answer TEXT NOT NULL DEFAULT '', finish TEXT,
        model TEXT NOT NULL, tokens BLOB, created REAL NOT NULL
    );
    CREATE INDEX turns_of_session ON turns (session, id);
    CREATE VIRTUAL TABLE words USING fts5 (question, answer, content='turns', content_rowid='id');
    CREATE TRIGGER turn_finished AFTER UPDATE OF finish ON turns WHEN old.finish IS NULL BEGIN
        INSERT INTO words (rowid, question, answer) VALUES (new.id, new.question, new.answer);
    END;
    CREATE TRIGGER turn_extended AFTER UPDATE OF answer ON turns WHEN old.finish IS NOT NULL BEGIN
        INSERT INTO words (words, rowid, question, answer)
        VALUES ('delete', old.id, old.question, old.answer);
        INSERT INTO words (rowid, question, answer) VALUES (new.id, new.question, new.answer);
    END;
    CREATE TRIGGER turn_removed AFTER DELETE ON turns WHEN old.finish IS NOT NULL BEGIN
        INSERT INTO words (words, rowid, question, answer)
        VALUES ('delete', old.id, old.question, old.answer);
    END;
    """,
)


def migrate(connection: sqlite3.Connection) -> None:
    """Create or update the tables, under the write lock, since another process may do the same.

    Raises DatabaseError for a damaged file, OSError for one that a later version of localgemma wrote.
    """
    if _version(connection) == len(_MIGRATIONS):
        return
    with transaction(connection):
        version = _version(connection)
        if version > len(_MIGRATIONS):
            if version > _HIGHEST_VERSION:
                raise sqlite3.DatabaseError("damaged")
            raise OSError("it was written by a later version of localgemma")
        if version < 0 or (version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone()):
            raise sqlite3.DatabaseError("damaged")
        for migration in _MIGRATIONS[version:]:
            for statement in _statements(migration):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")


def is_complete(connection: sqlite3.Connection) -> bool:
    """Whether every table, index and trigger is defined as the migrations define it."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        for statement in _statements("".join(_MIGRATIONS)):
            fresh.execute(statement)
        return _definitions(fresh).items() <= _definitions(connection).items()


def _definitions(connection: sqlite3.Connection) -> dict[str, str]:
    """The SQL of tables, indices and triggers, without those that FTS5 creates itself."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL")
    return {name: sql for name, sql in rows if not name.startswith("words_")}


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _statements(script: str) -> list[str]:
    """The single statements of a script; `executescript` would commit the open transaction."""
    statements, pending = [], ""
    for line in script.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
