"""Access to the database of saved conversations, shared by the threads of one process."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import cast

from localgemma_cli.errors import SavingError
from localgemma_cli.sessions.database_file import open_database
from localgemma_cli.sessions.search_index import is_index_error, rebuild_index, repair_index
from localgemma_cli.sessions.transaction import transaction
from localgemma_cli.text import repair_surrogates

_LOCK_SECONDS = 0.1  # between two calls of `waiting`


class Database:
    """Statements run inside `reading` or `writing`, which turn SQLite's errors into SavingError.

    `notice` is a warning for the user from opening the file: a damaged one was moved away, unless
    `replace_damaged` is false; then it raises SavingError. `waiting` is called while another thread or
    process writes; it may raise.
    """

    def __init__(self, path: Path, *, replace_damaged: bool = True) -> None:
        self._connection, self.notice = open_database(path, replace_damaged)
        self._path, self._lock = path, RLock()
        self._index_is_checked = False
        self.waiting: Callable[[], None] = lambda: None

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        while not self._lock.acquire(timeout=_LOCK_SECONDS):
            self.waiting()
        try:
            yield
        except sqlite3.Error as error:
            raise self._saving_error(error) from error
        finally:
            self._lock.release()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction; a nested call joins the outer one."""
        with self.reading():
            if self._connection.in_transaction:
                yield
            else:
                with transaction(self._connection, self.waiting):
                    self._check_index()
                    yield

    def rows(self, statement: str, values: Sequence[object]) -> list[sqlite3.Row]:
        cursor = self._connection.cursor()
        cursor.row_factory = sqlite3.Row
        return cursor.execute(statement, _storable(values)).fetchall()

    def insert(self, statement: str, values: Sequence[object]) -> int:
        """Run an INSERT; the new row's id."""
        return cast(int, self._execute(statement, values).lastrowid)

    def run(self, statement: str, values: Sequence[object]) -> None:
        self._execute(statement, values)

    def _execute(self, statement: str, values: Sequence[object]) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, _storable(values))
        except sqlite3.DatabaseError as error:  # from a trigger: the index check does not see all damage
            if not (is_index_error(error) and self._connection.in_transaction):
                raise
            rebuild_index(self._connection)
            return self._connection.execute(statement, _storable(values))

    def _check_index(self) -> None:
        """Check the index once, before the first write or search: that takes ten times as long as opening."""
        if not self._index_is_checked:
            repair_index(self._connection)
            self._index_is_checked = True

    def _saving_error(self, error: sqlite3.Error) -> SavingError:
        if isinstance(error, sqlite3.IntegrityError) and "sessions.name" in str(error):
            return SavingError(
                "Another conversation has that name.", "Choose another name, or /load that conversation."
            )
        return SavingError(
            f"The conversations in {self._path} cannot be used: {error}.",
            "Check the disk and the file, or chat without saving: --no-save",
        )


def _storable(values: Sequence[object]) -> list[object]:
    """Replace lone surrogates, which names and paths may contain and SQLite cannot store."""
    return [repair_surrogates(each) if isinstance(each, str) else each for each in values]
