"""Resume a batch: the results of earlier runs are those of the first rows of the input, in order."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from localgemma_cli.batch.read_ahead import ReadAhead
from localgemma_cli.batch.results import ResultsFile
from localgemma_cli.batch.rows import Row
from localgemma_cli.errors import UsageError

_LOOK_SECONDS = 0.1
# Kinds of errors that a row has by itself; others come from the engine, and can be gone the next time.
_LASTING = ("usage", "context", "incomplete")


@dataclass
class Tally:
    """The results so far, those of earlier runs included; `read`: their end in the input, in bytes."""

    rows: int = 0
    failed: int = 0
    read: int = 0

    def add(self, row: Row, *, failed: bool) -> None:
        self.rows += 1
        self.failed += failed
        self.read = row.end


@dataclass
class Resumed:
    """What earlier runs did, and the rows to answer again before those that follow in the input."""

    tally: Tally = field(default_factory=Tally)
    again: list[Row] = field(default_factory=list)


def row_key(engine: str, row: Row) -> str:
    """What a result is recognized by; `engine` identifies what answers."""
    return f"{engine}-{row.digest}"


def is_lasting(error: Mapping[str, object]) -> bool:
    """Whether a row would get this error of a result again."""
    return error.get("kind") in _LASTING


def skip_answered(rows: ReadAhead[Row], out: ResultsFile, engine: str) -> Resumed:
    """Read the results in `out`, and skip their rows. Failures of the engine at the end are removed.

    UsageError for a result that is not its row's.
    """
    resumed, end = Resumed(), 0
    for result, after in out.earlier():
        row = _next_row(rows)
        if row is None:
            raise _no_match(f"{out.path} has more results than the input has rows.")
        _check_key(result, row_key(engine, row), row, out.path)
        error = result.get("error")
        if isinstance(error, dict) and not is_lasting(error):
            resumed.again.append(row)
            continue
        for failed in resumed.again:
            resumed.tally.add(failed, failed=True)
        resumed.again.clear()
        resumed.tally.add(row, failed=error is not None)
        end = after
    out.cut(end)
    return resumed


def _next_row(rows: ReadAhead[Row]) -> Row | None:
    row = None
    while row is None and not rows.has_ended:
        row = rows.take(_LOOK_SECONDS)
    return row


def _check_key(result: Mapping[str, object], key: str, row: Row, path: str) -> None:
    found = str(result["key"])
    if found == key:
        return
    if found.partition("-")[0] != key.partition("-")[0]:
        by = " and ".join(f"{name} {result[name]}" for name in ("model", "preset") if result.get(name))
        raise _no_match(f"{path} was written by another model or plan{f': {by}' if by else ''}.")
    raise _no_match(f"Result {row.index} of {path} is not that of row {row.index}.")


def _no_match(message: str) -> UsageError:
    return UsageError(message, "Use the same input and options, or choose another file with -o.")
