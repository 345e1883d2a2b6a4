"""Which ids have occurred, of any number of rows: on disk, since millions of them do not fit in memory."""

import json
import sqlite3


class UniqueIds:
    """A set of ids with the index of the row that has each; for one thread."""

    def __init__(self) -> None:
        self._database: sqlite3.Connection | None = None

    def add(self, id: str | int, index: int) -> int | None:
        """Add an id; returns the index of another row that has it, None for a new one."""
        if self._database is None:  # most batches have no ids
            self._database = sqlite3.connect(
                "", isolation_level=None
            )  # a private file, which the system deletes
            self._database.execute("PRAGMA journal_mode = OFF")
            self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, row INTEGER) WITHOUT ROWID")
        key = json.dumps(id)  # 1 and "1" are different ids
        try:
            self._database.execute("INSERT INTO ids VALUES (?, ?)", (key, index))
        except sqlite3.IntegrityError:
            found = self._database.execute("SELECT row FROM ids WHERE id = ?", (key,)).fetchone()
            return int(found[0])
        return None
