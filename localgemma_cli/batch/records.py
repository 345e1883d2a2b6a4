"""The records of a JSON Lines, CSV or TSV file, one after the other, however large the file is."""

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import BinaryIO, NoReturn

from localgemma_cli.chat.phrases import format_count
from localgemma_cli.documents import Unreadable, format_value, parse_json_object
from localgemma_cli.errors import UsageError
from localgemma_cli.options import InputFormat
from localgemma_cli.text import TEXT_LIMIT
from localgemma_cli.units import format_bytes

_BOM = b"\xef\xbb\xbf"
_UNDECODED = re.compile("[\udc80-\udcff]")  # how Python decodes invalid UTF-8 with surrogateescape


@dataclass(frozen=True)
class Record:
    """The fields of a record, or why it has none; `end`: the position in the file after it, in bytes."""

    source: bytes
    end: int
    fields: Mapping[str, object] | None = None
    error: UsageError | None = None


class Records:
    """The records of `file`, read one by one; `columns` are those of CSV and TSV, None for JSON Lines.

    UsageError for a CSV header that cannot be used. Blank lines are no records.
    """

    def __init__(self, file: BinaryIO, format: InputFormat) -> None:
        self._lines = _Lines(file)
        self.columns: tuple[str, ...] | None = None
        if format is not InputFormat.JSONL:
            self._rows = csv.reader(
                map(_decode, self._lines), delimiter="\t" if format is InputFormat.TSV else ",", strict=True
            )
            csv.field_size_limit(TEXT_LIMIT)
            self.columns = self._read_header()

    def __iter__(self) -> Iterator[Record]:
        return self._json_records() if self.columns is None else self._csv_records(self.columns)

    def _json_records(self) -> Iterator[Record]:
        for line in self._lines:
            if line.strip():
                yield self._record(line, partial(_parse_line, line))

    def _csv_records(self, columns: tuple[str, ...]) -> Iterator[Record]:
        while True:
            try:
                cells = next(self._rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield self._record(self._lines.last, partial(_raise_not_csv, error))
                continue
            if cells:
                source = "\x1f".join(cells).encode("utf-8", "surrogateescape")
                yield self._record(source, partial(_name_cells, columns, cells))

    def _record(self, source: bytes, parse: Callable[[], Mapping[str, object]]) -> Record:
        end, is_cut = self._lines.position, self._lines.is_cut
        self._lines.is_cut = False
        try:
            if is_cut:
                raise _record_error(f"The row exceeds {format_bytes(TEXT_LIMIT)}.")
            return Record(source, end, parse())
        except UsageError as error:
            return Record(source, end, error=error)

    def _read_header(self) -> tuple[str, ...]:
        try:
            header = next((row for row in self._rows if row), [])
        except csv.Error as error:
            raise UsageError(f"The header of the input is not valid CSV: {error}.", _HEADER) from None
        names = [name.strip() for name in header]
        wrong = next((name for n, name in enumerate(names) if not name or name in names[:n]), None)
        if wrong is not None:
            problem = f"has {format_value(wrong)} twice" if wrong else "has a column without a name"
            raise UsageError(f"The header of the input {problem}.", _HEADER)
        return tuple(names)


_JSON_LINES = 'Write each as {"prompt": "…"} on one line, or name another format with --input-format.'
_HEADER = "The first line of CSV names the columns, each once."


def format_of_input(path: str, wanted: InputFormat) -> InputFormat:
    """The format that the user wants, else that of the file's name, else JSON Lines."""
    if wanted is not InputFormat.AUTO:
        return wanted
    return {".csv": InputFormat.CSV, ".tsv": InputFormat.TSV}.get(
        PurePath(path).suffix.lower(), InputFormat.JSONL
    )


class _Lines:
    """Lines of bytes as they arrive, without a byte order mark.

    A line longer than the limit is cut, and `is_cut` set, which the reader of a record resets.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position, self.last, self.is_cut = 0, b"", False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> bytes:
        line = self._file.readline(TEXT_LIMIT)
        if not line:
            raise StopIteration
        first = self.position == 0
        self.position += len(line)
        rest = line
        while len(rest) == TEXT_LIMIT and not rest.endswith(b"\n"):
            rest = self._file.readline(TEXT_LIMIT)
            self.position += len(rest)
            self.is_cut = self.is_cut or bool(rest)
        self.last = line.removeprefix(_BOM) if first else line
        return self.last


def _decode(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _parse_line(line: bytes) -> Mapping[str, object]:
    try:
        return parse_json_object(line)
    except Unreadable as error:
        raise UsageError(f"The row cannot be read: {error}.", _JSON_LINES) from None


def _name_cells(columns: tuple[str, ...], cells: list[str]) -> Mapping[str, object]:
    if len(cells) != len(columns):
        raise _record_error(
            f"The row has {format_count(len(cells), 'field')}, and the header {len(columns)}."
        )
    if any(map(_UNDECODED.search, cells)):
        raise _record_error("The row is not UTF-8 text.")
    return dict(zip(columns, cells, strict=True))


def _raise_not_csv(error: csv.Error) -> NoReturn:
    raise _record_error(f"The row is not valid CSV: {error}.") from None


def _record_error(message: str) -> UsageError:
    return UsageError(message, "Correct the row.")
