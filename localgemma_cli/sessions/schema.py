"""The file of saved conversations: one SQLite database, private to the user, migrated by `user_version`."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from localgemma_cli.environment import make_private
from localgemma_cli.errors import SavingError

_BUSY_SECONDS = 20.0
_TRY_SECONDS = 0.1  # of it; in between, a Ctrl-C is heard
_PARTS = ("", "-wal", "-shm")  # of one database in WAL mode

# A turn is written when its question is asked: `finish` stays null until the answer is whole. Only finished
# turns are in `words`, the full-text index, so that what it holds of a turn changes as a whole.
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


def connect(path: Path) -> tuple[sqlite3.Connection, str | None]:
    """The database, made where there is none; and a word where a damaged one had to be set aside.

    Raises SavingError where it cannot be opened: no permission, no disk, or written by a later version.
    """
    try:
        try:
            return _opened(path), None
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, read-only, full: not damage
                raise
            aside = _set_aside(path)
            return _opened(path), f"The saved conversations were damaged; the file is kept as {aside}."
    except (sqlite3.Error, OSError) as error:
        raise SavingError(
            f"Conversations cannot be saved in {path}: {error}.",
            "Check the folder; a new chat with --no-save needs none.",
        ) from error


def _opened(path: Path) -> sqlite3.Connection:
    make_private(path.parent)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # private from its first byte on
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection)
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("damaged")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    """Under the write lock, since another process may do the same just now."""
    if _version(connection) == len(_MIGRATIONS):
        return
    with transaction(connection):
        version = _version(connection)
        if version > len(_MIGRATIONS):
            raise OSError("a later version of localgemma wrote it")
        for migration in _MIGRATIONS[version:]:
            for statement in _statements(migration):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _statements(script: str) -> list[str]:
    """One by one: `executescript` would commit what is under way."""
    statements, pending = [], ""
    for line in script.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements


@contextmanager
def transaction(connection: sqlite3.Connection, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """All of a block or nothing of it; the write lock is taken at once, so that two writers take turns.

    `waiting` is called again and again while another has it, and may raise.
    """
    _begin(connection, waiting)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite has rolled back by itself where the disk was full
            connection.execute("ROLLBACK")
        raise


def _begin(connection: sqlite3.Connection, waiting: Callable[[], None]) -> None:
    ends = time.monotonic() + _BUSY_SECONDS
    connection.execute(f"PRAGMA busy_timeout = {int(_TRY_SECONDS * 1000)}")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > ends:
                    raise
            waiting()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.stem}-damaged-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}")
    for part in _PARTS:
        with suppress(FileNotFoundError):
            os.replace(f"{path}{part}", f"{aside}{part}")
    return aside
