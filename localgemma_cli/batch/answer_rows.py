"""Answer the rows of a batch and write their results, in the order of the rows."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from threading import Event as Cancel
from typing import cast

from localgemma_cli.backends.base import Backend
from localgemma_cli.backends.many import Request, stream_all
from localgemma_cli.batch.read_ahead import ReadAhead
from localgemma_cli.batch.results import Results
from localgemma_cli.batch.resume import Resumed, Tally, is_lasting, row_key
from localgemma_cli.batch.rows import Row
from localgemma_cli.chat.typed_answer import read_value
from localgemma_cli.constraint import Constraint
from localgemma_cli.errors import IncompleteAnswer, LocalGemmaError
from localgemma_cli.events import Delta, Event, Finished, Thinking
from localgemma_cli.render.base import Answer, Parsed
from localgemma_cli.render.json import RunInfo, answer_object, error_object

_LOOK_SECONDS = 0.1
_MOST_OPEN = 256  # rows that have begun and are not written; more would fill the memory if nothing reads them
# Of the object that --json prints; the rest is the same for all rows, or differs from run to run.
_ANSWER = frozenset(
    ("model", "preset", "thinking", "response", "parsed", "choices", "finish_reason", "usage", "logprobs")
)
_MOST_FAILURES = 3  # of the engine, one after the other: the next rows would fail, too


@dataclass
class _OpenRow:
    """A row whose result is not written; `result` is set when it is complete."""

    row: Row
    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    result: Mapping[str, object] | None = None
    failure: LocalGemmaError | None = None


class RowAnswers:
    """One run over `rows`; `show` is called with the tally after each result.

    `engine` identifies what answers; see `row_key`.
    """

    def __init__(
        self,
        rows: ReadAhead[Row],
        results: Results,
        info: RunInfo,
        engine: str,
        resumed: Resumed,
        cancel: Cancel,
        show: Callable[[Tally], None],
    ) -> None:
        self._rows, self._results, self._info, self._engine = rows, results, info, engine
        self._cancel, self._show = cancel, show
        self._again = deque(resumed.again)
        self._tally = resumed.tally
        self._open: deque[_OpenRow] = deque()  # in the order of the rows
        self._asked: dict[int, _OpenRow] = {}  # being answered, by the number of the request
        self._failures = 0  # of the engine, one after the other

    def answer(self, backend: Backend) -> None:
        """Answer until the end of the rows, or until `cancel` is set, which drops unfinished answers.

        Raises an engine's error that comes again and again, and what writing raises.
        """
        events = cast("Generator[tuple[int, Event]]", stream_all(backend, self._requests(), self._cancel))
        with closing(events):
            for number, event in events:
                self._take(number, event)
        if self._open and not self._cancel.is_set():
            raise LocalGemmaError("The model stopped before the last row.", "Run it again with --resume.")

    @property
    def is_complete(self) -> bool:
        """Whether every row has its result."""
        return self._rows.has_ended and not self._again and not self._open

    def _requests(self) -> Iterator[Request | None]:
        number = 0
        while not self._cancel.is_set():
            row = self._next_row()
            if row is None:
                if self._rows.has_ended:
                    return
                yield None
                continue
            opened = _OpenRow(row)
            self._open.append(opened)
            if row.request is None:
                assert row.error is not None  # a row has one of the two
                self._fail(opened, row.error)
                self._write_finished()
                continue
            self._asked[number] = opened
            number += 1
            yield row.request

    def _next_row(self) -> Row | None:
        """None if no row has arrived; waits for one only while no answer is being computed."""
        if self._again:
            return self._again.popleft()
        if len(self._open) >= _MOST_OPEN:
            return None
        return self._rows.take(0 if self._asked else _LOOK_SECONDS)

    def _take(self, number: int, event: Event) -> None:
        opened = self._asked[number]
        match event:
            case Delta(piece):
                opened.text.append(piece)
            case Thinking(piece):
                opened.thinking.append(piece)
            case Finished():
                del self._asked[number]
                if event.finish_reason != "interrupted":
                    self._finish(opened, event)
                    self._write_finished()

    def _finish(self, opened: _OpenRow, finished: Finished) -> None:
        if finished.error is not None and not opened.text:
            self._fail(opened, finished.error)
            return
        answer = Answer("".join(opened.text), finished, "".join(opened.thinking))
        if finished.error is None and (constraint := _constraint_of(opened.row)) is not None:
            try:
                answer = replace(answer, parsed=Parsed(read_value(answer, constraint)))
            except IncompleteAnswer as error:
                self._fail(opened, error)
                return
        opened.failure = finished.error
        opened.result = {
            **self._head(opened.row),
            **{name: each for name, each in answer_object(self._info, answer).items() if name in _ANSWER},
            **(error_object(finished.error) if finished.error else {}),
            **self._key(opened.row),
        }

    def _fail(self, opened: _OpenRow, error: LocalGemmaError) -> None:
        opened.failure = error
        opened.result = {**self._head(opened.row), **error_object(error), **self._key(opened.row)}

    def _head(self, row: Row) -> dict[str, object]:
        return {"index": row.index, "id": row.id}  # the index first: see `results.py`

    def _key(self, row: Row) -> dict[str, object]:
        return {"key": row_key(self._engine, row)}

    def _write_finished(self) -> None:
        """Write the results up to the first row that is not finished."""
        while self._open and self._open[0].result is not None:
            opened = self._open.popleft()
            assert opened.result is not None  # the condition of the loop
            self._results.write(opened.result)
            self._tally.add(opened.row, failed=opened.failure is not None)
            self._show(self._tally)
            self._count_failure(opened)

    def _count_failure(self, opened: _OpenRow) -> None:
        """Raise the engine's error if it comes again and again."""
        if opened.failure is None:
            self._failures = 0
        elif not is_lasting({"kind": opened.failure.kind}):
            self._failures += 1
            if self._failures == _MOST_FAILURES:
                raise opened.failure


def _constraint_of(row: Row) -> Constraint | None:
    return row.request[1].constraint if row.request is not None else None
