"""The file of saved conversations: one SQLite database, private to the user, migrated by `user_version`."""

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path

from localgemma_cli.environment import make_private
from localgemma_cli.errors import SavingError

_BUSY_SECONDS = 20.0
_TRY_SECONDS = 0.1  # of it; in between, a Ctrl-C is heard
_PARTS = ("", "-wal", "-shm")  # of one database in WAL mode
_DAMAGE = (
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_CONSTRAINT,
)
_VERSIONS = 100  # more there will not be: the number is damaged

_GLANCE = "SELECT rowid FROM words WHERE words MATCH 'a' LIMIT 1"

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
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if not _is_damage(error):
                raise
        return _replaced(path)
    except (sqlite3.Error, OSError) as error:
        raise SavingError(
            f"Conversations cannot be saved in {path}: {error}.",
            "Check the folder; a new chat with --no-save needs none.",
        ) from error


def _is_damage(error: Exception) -> bool:
    """Not a file that is locked, read-only or on a full disk; a message with a bad byte cannot be decoded."""
    if isinstance(error, UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    return code in _DAMAGE and "no such module: fts5" not in str(error)


def _replaced(path: Path) -> tuple[sqlite3.Connection, str | None]:
    """A new file in the place of a damaged one, which is kept; by one process, while others wait for it."""
    from filelock import FileLock

    with FileLock(f"{path}.lock", mode=0o600):
        try:
            return _opened(path), None  # another process has replaced it
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if not _is_damage(error):
                raise
        aside = _set_aside(path)
        return _opened(path), f"The saved conversations were damaged; the file is kept as {aside}."


def _opened(path: Path) -> sqlite3.Connection:
    make_private(path.parent)
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb") as file:  # private from its first byte on
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no ordinary file")
        formats = file.read(20)[18:]
    if set(formats) - {1, 2}:  # SQLite takes such a file for one of a later version
        raise sqlite3.DatabaseError("damaged")
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection)
        if not _definitions().items() <= _definitions(connection).items():
            raise sqlite3.DatabaseError("damaged")
        _mend(connection)
        connection.text_factory = _text
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
            if version > _VERSIONS:
                raise sqlite3.DatabaseError("damaged")
            raise OSError("a later version of localgemma wrote it")
        if version < 0 or (version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone()):
            raise sqlite3.DatabaseError("damaged")
        for migration in _MIGRATIONS[version:]:
            for statement in _statements(migration):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")


def _mend(connection: sqlite3.Connection) -> None:
    """Indices that are damaged are made anew; for the turns themselves that cannot be: an error."""
    if not _is_fine(connection, "quick_check"):
        raise sqlite3.DatabaseError("damaged")
    if not _is_fine(connection, "integrity_check"):  # looks also at what indices hold
        with transaction(connection):
            connection.execute("REINDEX")
            if not _is_fine(connection, "integrity_check"):
                raise sqlite3.DatabaseError("damaged")
    try:
        connection.execute(_GLANCE).fetchall()
    except sqlite3.DatabaseError as error:
        if not is_of_the_index(error):
            raise
        with transaction(connection):
            rebuild_index(connection)
            connection.execute(_GLANCE).fetchall()


def _is_fine(connection: sqlite3.Connection, check: str) -> bool:
    return bool(connection.execute(f"PRAGMA {check}(1)").fetchone()[0] == "ok")


def mend_index(connection: sqlite3.Connection) -> None:
    """Make the full-text index anew where it is damaged; within a transaction."""
    try:
        connection.execute("INSERT INTO words (words) VALUES ('integrity-check')")
    except sqlite3.DatabaseError as error:
        if not is_of_the_index(error):
            raise
        rebuild_index(connection)


def is_of_the_index(error: sqlite3.DatabaseError) -> bool:
    """Whether it may be: SQLite tells it as any other damage, or as a number that is there twice."""
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CORRUPT or str(error) == "constraint failed"


def rebuild_index(connection: sqlite3.Connection) -> None:
    """From the finished turns, which hold all of it; within a transaction."""
    connection.execute("INSERT INTO words (words) VALUES ('delete-all')")
    connection.execute(
        "INSERT INTO words (rowid, question, answer)"
        " SELECT id, question, answer FROM turns WHERE finish IS NOT NULL"
    )


def _definitions(connection: sqlite3.Connection | None = None) -> dict[str, str]:
    """The SQL of tables, indices and triggers, by default as the migrations make them."""
    if connection is None:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
            for statement in _statements("".join(_MIGRATIONS)):
                fresh.execute(statement)
            return _definitions(fresh)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL")
    return {name: sql for name, sql in rows if not name.startswith("words_")}  # those FTS5 makes itself


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


def _text(data: bytes) -> str:
    """A bad byte in a text costs one character, not the conversation."""
    return data.decode("utf-8", "replace")


def _set_aside(path: Path) -> Path:
    """Under the lock, to a name that nothing has. The file goes last: SQLite empties the log of a new one."""
    stem = f"{path.stem}-damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (path.with_name(f"{stem}{f'-{n}' if n else ''}{path.suffix}") for n in count())
    aside = next(each for each in names if not any(os.path.lexists(f"{each}{part}") for part in _PARTS))
    for part in reversed(_PARTS):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{part}", f"{aside}{part}")
    return aside
