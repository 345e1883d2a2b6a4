"""The full-text index of finished turns: check it, and rebuild it from the turns if it is damaged."""

import sqlite3

_PROBE = "SELECT rowid FROM words WHERE words MATCH 'a' LIMIT 1"


def probe_index(connection: sqlite3.Connection) -> None:
    """Run one search. Raises DatabaseError if the index cannot be used."""
    connection.execute(_PROBE).fetchall()


def repair_index(connection: sqlite3.Connection) -> None:
    """Check the whole index and rebuild it if it is damaged. Call this within a transaction."""
    try:
        connection.execute("INSERT INTO words (words) VALUES ('integrity-check')")
    except sqlite3.DatabaseError as error:
        if not is_index_error(error):
            raise
        rebuild_index(connection)


def is_index_error(error: sqlite3.DatabaseError) -> bool:
    """Whether the index may be damaged: SQLite reports it as general damage, or as a duplicate row id."""
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CORRUPT or str(error) == "constraint failed"


def rebuild_index(connection: sqlite3.Connection) -> None:
    """Fill the index again from the finished turns. Call this within a transaction."""
    connection.execute("INSERT INTO words (words) VALUES ('delete-all')")
    connection.execute(
        "INSERT INTO words (rowid, question, answer)"
        " SELECT id, question, answer FROM turns WHERE finish IS NOT NULL"
    )
