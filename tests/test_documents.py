"""Files from outside, read within bounds: whatever they hold, there is an object or one short reason."""

import os
from pathlib import Path

import pytest

from localgemma_cli.config import read_config
from localgemma_cli.documents import (
    Unreadable,
    format_value,
    parse_bounded_json,
    parse_json_object,
    read_json_object,
)
from localgemma_cli.errors import UsageError

NO_OBJECT = {
    "empty": b"",
    "a list": b"[]",
    "deep list": b"[" * 10_000,
    "deep object": b'{"a":' * 10_000,
    "closed and deep": b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
    "400 digits": b'{"a": 1%s}' % (b"0" * 400),
    "5,000 digits": b'{"a": -%s}' % (b"9" * 5_000),
    "inf": b'{"a": 1e999}',
    "Infinity": b'{"a": -Infinity}',
    "NaN": b'{"a": [NaN]}',
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "half a character": rb'{"a": ["\ud83d"]}',
    "half a character in a key": rb'{"\udc00": 1}',
    "cut": b'{"a": "b',
    "many values": b'{"a": [%s1]}' % (b"1," * 1_100_000),
}


@pytest.mark.parametrize("name", NO_OBJECT)
def test_what_is_no_object_has_a_short_reason(name: str) -> None:
    with pytest.raises(Unreadable) as caught:
        parse_json_object(NO_OBJECT[name])
    assert len(str(caught.value)) < 120
    assert "\n" not in str(caught.value)


def test_ordinary_values_stay_as_they_are() -> None:
    text = rb'{"a": [1, -2.5e3, true, null], "b": {"c": "\ud83d\ude00"}, "model_max_length": 1%s}' % (
        b"0" * 30
    )
    assert parse_bounded_json(text) == {
        "a": [1, -2500.0, True, None],
        "b": {"c": "😀"},
        "model_max_length": 10**30,
    }


def test_only_regular_files_of_a_limited_size_are_read(tmp_path: Path) -> None:
    fifo, large, zero = tmp_path / "fifo", tmp_path / "large", tmp_path / "zero"
    os.mkfifo(fifo)
    with large.open("wb") as file:
        file.truncate(50 << 20)
    zero.symlink_to("/dev/zero")
    for path, word in (
        (fifo, "regular file"),
        (zero, "regular file"),
        (tmp_path, "folder"),
        (large, "larger than"),
    ):
        with pytest.raises(Unreadable, match=word):
            read_json_object(path)
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "none")


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5_000, f"{'a.' * 500}b = 1", f"a = {'9' * 5_000}", f"a = 0x{'f' * 9_000}", "a ="]
)
def test_a_user_s_toml_is_refused_in_a_short_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_config(path, ["a"])
    assert caught.value.message.startswith(str(path))
    assert len(caught.value.message) < len(str(path)) + 140


@pytest.mark.parametrize(
    "value", [[10**5_000], ["x" * 10_000], "\x1b]0;x\x07" * 50], ids=["digits", "long", "escapes"]
)
def test_any_value_is_shown_in_short(value: object) -> None:
    assert len(format_value(value)) <= 60
    assert format_value(value).isprintable()
