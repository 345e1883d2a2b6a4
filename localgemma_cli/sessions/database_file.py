"""Open the SQLite file of saved conversations: private to the user, checked, replaced if it is damaged."""

import os
import sqlite3
import stat
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

from localgemma_cli.environment import make_private
from localgemma_cli.errors import SavingError
from localgemma_cli.sessions.schema import is_complete, migrate
from localgemma_cli.sessions.search_index import is_index_error, probe_index, rebuild_index
from localgemma_cli.sessions.transaction import BUSY_SECONDS, transaction

_SUFFIXES = ("", "-wal", "-shm")  # the files of one database in WAL mode
_DAMAGE_CODES = (
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_CONSTRAINT,
)


def open_database(path: Path, replace_damaged: bool) -> tuple[sqlite3.Connection, str | None]:
    """Open the database, created if missing; also return a notice if a damaged file was moved away.

    Raises SavingError if it cannot be opened: no permission, full disk, written by a later version, or
    damaged and not to be replaced.
    """
    try:
        try:
            return _open(path), None
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if not (replace_damaged and _is_damage(error)):
                raise
        return _replace_damaged(path)
    except (sqlite3.Error, UnicodeDecodeError, OSError) as error:
        raise SavingError(
            f"Conversations cannot be saved in {path}: {error}.",
            "Check the folder, or chat without saving: --no-save",
        ) from error


def _is_damage(error: Exception) -> bool:
    """Whether the file is damaged, and not locked, read-only or on a full disk.

    A damaged name in a message of SQLite shows as UnicodeDecodeError.
    """
    if isinstance(error, UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    return code in _DAMAGE_CODES and "no such module: fts5" not in str(error)


def _replace_damaged(path: Path) -> tuple[sqlite3.Connection, str | None]:
    """Move the damaged file away and create a new one; other processes wait on a lock file."""
    from filelock import FileLock

    with FileLock(f"{path}.lock", mode=0o600):
        try:
            return _open(path), None  # another process has already replaced it
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if not _is_damage(error):
                raise
        kept = _move_away(path)
        return _open(path), f"The saved conversations were damaged; the file is kept as {kept}."


def _open(path: Path) -> sqlite3.Connection:
    make_private(path.parent)
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb") as file:  # private from its first byte on
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a regular file")
        formats = file.read(20)[18:]
    if set(formats) - {1, 2}:  # SQLite would treat such a file as one of a later version
        raise sqlite3.DatabaseError("damaged")
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        migrate(connection)
        if not is_complete(connection):
            raise sqlite3.DatabaseError("damaged")
        _repair(connection)
        connection.text_factory = _decode
    except BaseException:
        connection.close()
        raise
    return connection


def _repair(connection: sqlite3.Connection) -> None:
    """Rebuild damaged indices. Raises DatabaseError if the turns themselves are damaged."""
    if not _passes(connection, "quick_check"):
        raise sqlite3.DatabaseError("damaged")
    if not _passes(connection, "integrity_check"):  # also compares indices with their tables
        with transaction(connection):
            connection.execute("REINDEX")
            if not _passes(connection, "integrity_check"):
                raise sqlite3.DatabaseError("damaged")
    try:
        probe_index(connection)
    except sqlite3.DatabaseError as error:
        if not is_index_error(error):
            raise
        with transaction(connection):
            rebuild_index(connection)
            probe_index(connection)


def _passes(connection: sqlite3.Connection, check: str) -> bool:
    return bool(connection.execute(f"PRAGMA {check}(1)").fetchone()[0] == "ok")


def _decode(data: bytes) -> str:
    """Decode UTF-8; a damaged byte becomes U+FFFD, so the rest of the conversation can be read."""
    return data.decode("utf-8", "replace")


def _move_away(path: Path) -> Path:
    """Rename the damaged files to an unused name; call this under the lock.

    The database itself goes last: SQLite would empty the log of a new one.
    """
    stem = f"{path.stem}-damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (path.with_name(f"{stem}{f'-{n}' if n else ''}{path.suffix}") for n in count())
    kept = next(each for each in names if not any(os.path.lexists(f"{each}{end}") for end in _SUFFIXES))
    for suffix in reversed(_SUFFIXES):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{kept}{suffix}")
    return kept
