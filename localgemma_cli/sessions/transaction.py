"""Write transactions that wait for other processes, and can be interrupted while they wait."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

BUSY_SECONDS = 20.0  # the longest wait for another writer
_ATTEMPT_SECONDS = 0.1  # of that wait, between two calls of `waiting`


@contextmanager
def transaction(connection: sqlite3.Connection, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Commit the block as a whole, or roll it back. Takes the write lock at once, so that writers take turns.

    `waiting` is called repeatedly while another process has the lock; it may raise, for a Ctrl-C.
    """
    _begin(connection, waiting)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # with a full disk, SQLite has already rolled back
            connection.execute("ROLLBACK")
        raise


def _begin(connection: sqlite3.Connection, waiting: Callable[[], None]) -> None:
    ends = time.monotonic() + BUSY_SECONDS
    connection.execute(f"PRAGMA busy_timeout = {int(_ATTEMPT_SECONDS * 1000)}")
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
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
