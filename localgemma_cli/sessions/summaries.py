"""One line per conversation, and the SQL that lists and searches conversations."""

import sqlite3
from dataclasses import dataclass

from localgemma_cli.sessions.names import parse_number
from localgemma_cli.sessions.titles import subject_of

_TITLE_LENGTH = 60  # characters of the first question, for a conversation without a title
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
_HAS_QUERY = (
    f" HAVING sum(t.id IN ({_MATCHING}))"
    " OR instr(lower(ifnull(s.title, '') || char(10) || ifnull(s.name, '')), lower(?))"
)


@dataclass(frozen=True)
class Summary:
    """One conversation in a list; `name` was given by the user, `updated` is in seconds since 1970."""

    id: int
    name: str | None
    title: str
    turns: int
    updated: float
    model: str

    @property
    def handle(self) -> str:
        """What the user can refer to it by."""
        return handle_of(self.id, self.name)


def handle_of(id: int, name: str | None) -> str:
    """The name, or the number of a conversation without one; a name that is a number would be ambiguous."""
    return str(id) if name is None or parse_number(name) is not None else name


def summaries_query(query: str, limit: int) -> tuple[str, tuple[object, ...]]:
    """SQL and values for the conversations that match `query` (all of them for ""), latest first."""
    phrases = fts_phrases(query)
    having, values = (_HAS_QUERY, (phrases, query, query.strip())) if phrases else ("", ())
    return f"{_SUMMARIES}{having} ORDER BY last DESC, s.id DESC LIMIT ?", (*values, limit)


def turns_query(query: str) -> tuple[str, tuple[object, ...]]:
    """SQL and values for the turns that match `query`, latest first."""
    statement = f"SELECT session, question, answer FROM turns WHERE id IN ({_MATCHING}) ORDER BY id DESC"
    return statement, (fts_phrases(query), query)


def fts_phrases(query: str) -> str:
    """The words of `query` quoted for FTS5; the last one matches as a prefix. "" for a blank query."""
    words = ['"' + word.replace('"', '""') + '"' for word in query.split()]
    return " ".join(words) + "*" if words else ""


def summary_of(row: sqlite3.Row) -> Summary:
    title = row["title"] or shorten_title(subject_of(row["first"] or ""))
    return Summary(row["id"], row["name"], title, row["turns"], row["updated"], row["model"] or "")


def shorten_title(text: str) -> str:
    return text if len(text) <= _TITLE_LENGTH else f"{text[:_TITLE_LENGTH]}…"
