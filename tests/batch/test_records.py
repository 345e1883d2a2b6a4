"""Records of JSON Lines and CSV, one by one."""

import csv
import io
import os
from collections.abc import Mapping

import pytest

from localgemma_cli.batch.records import Record, Records, format_of_input
from localgemma_cli.errors import UsageError
from localgemma_cli.options import InputFormat
from localgemma_cli.text import TEXT_LIMIT


def read(data: bytes, format: InputFormat = InputFormat.CSV) -> list[Record]:
    return list(Records(io.BytesIO(data), format))


def fields_of(data: bytes, format: InputFormat = InputFormat.CSV) -> list[Mapping[str, object] | None]:
    return [each.fields for each in read(data, format)]


@pytest.mark.parametrize(
    ("path", "wanted", "format"),
    [
        ("a.jsonl", "auto", "jsonl"),
        ("a.CSV", "auto", "csv"),
        ("b/a.tsv", "auto", "tsv"),
        ("-", "auto", "jsonl"),
        ("a.csv", "jsonl", "jsonl"),
        ("-", "csv", "csv"),
    ],
)
def test_the_format_is_that_of_the_option_or_of_the_name(path: str, wanted: str, format: str) -> None:
    assert format_of_input(path, InputFormat(wanted)) == format


def test_csv_has_named_fields_with_line_ends_and_quotes_in_them() -> None:
    data = '\ufeffid, text \r\n1,"a ""b"",\r\nc"\r\n\r\n2,é\r\n'.encode()
    assert fields_of(data) == [{"id": "1", "text": 'a "b",\r\nc'}, {"id": "2", "text": "é"}]
    assert [each.end for each in read(data)] == [len(data) - 8, len(data)]
    assert fields_of(b"a\tb\n1,2\t3\n", InputFormat.TSV) == [{"a": "1,2", "b": "3"}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"1", "The row has 1 field, and the header 2."),
        (b"1,2,3", "The row has 3 fields, and the header 2."),
        (b"1,\xff", "The row is not UTF-8 text."),
        (b'1,"a"b', "The row is not valid CSV: ',' expected after '\"'."),
        (b"1," + b"x" * (TEXT_LIMIT + 1), "The row exceeds 4.2 MB."),
        (b"1,2" + b"x" * (TEXT_LIMIT - 3), "The row exceeds 4.2 MB."),
    ],
)
def test_a_bad_record_of_csv_has_an_error_and_the_next_is_read(record: bytes, message: str) -> None:
    before, bad, after = read(b"id,text\n0,first\n" + record + b"\n2,last\n")
    assert bad.error is not None
    assert bad.error.message.startswith(message)
    assert (before.fields, after.fields) == ({"id": "0", "text": "first"}, {"id": "2", "text": "last"})


def test_a_quote_that_is_never_closed_is_an_error_and_not_held_in_memory() -> None:
    lines = b'id,text\n1,"open\n' + (b"2," + b"x" * 5000 + b"\n") * 1000
    bad, *rest = read(lines)
    assert bad.error is not None
    assert "larger than field limit" in bad.error.message
    assert rest[-1].fields == {"id": "2", "text": "x" * 5000}
    (last,) = read(b'id,text\n1,"open')
    assert last.error is not None


@pytest.mark.parametrize("header", [b"a,b,a\n", b"a,,b\n", b'"a"b,c\n'])
def test_a_header_that_cannot_be_used_is_refused(header: bytes) -> None:
    with pytest.raises(UsageError, match="The header of the input"):
        read(header + b"1,2,3\n")
    assert read(b"") == []


@pytest.mark.parametrize(
    "line",
    [
        b"[1]",
        b"{",
        b'{"a": NaN}',
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b'{"a": "\\ud800"}',
        b'{"a": "' + b"x" * TEXT_LIMIT + b'"}',
    ],
    ids=lambda line: line[:12].decode("latin1"),
)
def test_a_bad_line_of_json_has_an_error_and_the_next_is_read(line: bytes) -> None:
    bad, good = read(line + b'\n\n{"a": 1}', InputFormat.JSONL)
    assert bad.error is not None
    assert bad.fields is None
    assert good.fields == {"a": 1}
    assert good.end == len(line) + len(b'\n\n{"a": 1}')


@pytest.mark.parametrize("line", [b"plain text", b"name,city", b"{"])
def test_text_csv_and_json_of_several_lines_are_told_what_a_row_is(line: bytes) -> None:
    (record,) = read(line + b"\n", InputFormat.JSONL)
    assert record.error is not None
    assert '{"prompt": "…"} on one line' in record.error.hint
    assert "--input-format" in record.error.hint


def test_a_record_is_read_when_its_line_has_arrived() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as file, open(writing, "wb", 0) as pipe:
        pipe.write(b"text\n")
        records = iter(Records(file, InputFormat.CSV))
        for text in ("one", "two"):
            pipe.write(f"{text}\n".encode())
            assert next(records).fields == {"text": text}


def test_other_readers_of_csv_keep_working() -> None:
    read(b"a\n1\n")
    assert list(csv.reader(["a,b"])) == [["a", "b"]]
