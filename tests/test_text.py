"""Text where it enters: one normal form of it, whatever an encoding, an editor or a terminal made of it."""

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.program import Program

from localgemma_cli.chat.attachments import read_attachment
from localgemma_cli.chat.prompt_input import read_system
from localgemma_cli.config import read_config
from localgemma_cli.errors import LocalGemmaError, NotFoundError, UsageError
from localgemma_cli.models.own_models import own_models
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.sessions.store import Store
from localgemma_cli.text import (
    decode_text,
    normalize,
    parse_json,
    read_bytes,
    read_text,
)

HALVES = st.text(
    st.one_of(st.characters(), st.characters(categories=["Cs"]), st.sampled_from("\r\n\0\ufeff"))
)


@pytest.mark.parametrize(
    ("entered", "text"),
    [
        ("\ud83d\ude00", "😀"),
        ("a \ud83d", "a \ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("caf\udce9", "caf\ufffd"),
        ("\udcc3\udca9", "é"),
        ("\ufeffone\r\ntwo\rthree\0", "one\ntwo\nthree\ufffd"),
        ("a\ufeffb", "a\ufeffb"),
    ],
)
def test_what_enters_becomes_whole_characters_and_lines(entered: str, text: str) -> None:
    assert normalize(entered) == text


@settings(derandomize=True, deadline=None)
@given(HALVES)
def test_all_text_can_be_written_and_is_normal_once_normalized(text: str) -> None:
    normal = normalize(text)
    normal.encode()
    assert normalize(normal) == normal
    assert not set(normal) & {"\r", "\0"}


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=40))
def test_bytes_are_text_or_refused(data: bytes) -> None:
    with suppress(UsageError):
        decode_text(data, "It").encode()


def test_the_two_utf_16_forms_are_named() -> None:
    with pytest.raises(UsageError, match="UTF-16") as caught:
        decode_text("text".encode("utf-16"), "notes.txt")
    assert "iconv -f utf-16" in caught.value.hint


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "", "{", "nul"])
def test_json_that_cannot_be_read_is_one_kind_of_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/tty", "/proc/self/mem", ".", "gone", "a\0b", "\ud83d", "~no/x"]
)
def test_no_file_is_endless_or_unforeseen(path: str) -> None:
    with pytest.raises(LocalGemmaError):
        read_text(path)


def test_a_pipe_is_read_where_it_is_allowed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(UsageError, match="not a regular file"):
        read_bytes(fifo, 10)
    writer = threading.Thread(target=lambda: fifo.write_bytes(b"from a command"))
    writer.start()
    assert read_text(fifo, pipes=True) == "from a command"
    writer.join()
    writer = threading.Thread(target=lambda: _flood(fifo))
    writer.start()
    with pytest.raises(UsageError, match="larger than"):
        read_bytes(fifo, 2**20, pipes=True)
    writer.join()


def _flood(fifo: Path) -> None:
    with fifo.open("wb", buffering=0) as file, suppress(BrokenPipeError):
        while True:
            file.write(b"x" * 2**16)


def test_files_as_other_editors_write_them(tmp_path: Path) -> None:
    def written(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        return tmp_path / name

    assert read_config(written("config.toml", 'model = "demo"\n'), ["model"]) == {"model": "demo"}
    assert (
        own_models(written("models.toml", '[mine]\nrepository = "demo"\nsystem = """a\nb"""\n'))[
            "mine"
        ].system
        == "a\nb"
    )
    preset = written("mine.toml", 'inherits = "memory"\nsummary = "x"\n')
    assert load_presets(preset.parent / "none").keys() < {"mine", *load_presets(_alone(preset)).keys()}
    assert read_system(None, str(written("s.txt", "Be\nbrief.\n"))) == "Be\nbrief.\n"
    assert read_attachment(str(written("a.txt", "one\ntwo"))).text == "one\ntwo"


def _alone(preset: Path) -> Path:
    folder = preset.parent / "presets"
    folder.mkdir()
    return preset.rename(folder / preset.name).parent


def test_files_of_the_users_own_that_cannot_be_read_are_usage_errors(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert read_config(path, []) == {}
    for damage in (b"\xff", b"a\0", b"=", b"a = " + b"[" * 50_000, b"a = " + b"9" * 5000):
        path.write_bytes(damage)
        with pytest.raises(UsageError, match=r"config\.toml"):
            read_config(path, [])
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="not a regular file"):
        read_config(path, [])
    with pytest.raises(NotFoundError, match="No such file"):
        read_system(None, str(tmp_path / "gone"))


def test_half_a_character_can_be_saved(tmp_path: Path) -> None:
    store = Store(tmp_path / "conversations.sqlite")
    session = store.create("\ud83d", name="caf\udce9")
    store.begin(session, "a \ud83d", "folder/\udce9")
    assert store.find("caf\udce9") == store.find("caf\ufffd") == session
    assert store.conversation(session, "m").turns[0].question.content == "a \ufffd"


def test_arguments_in_another_encoding_are_text(program: Program) -> None:
    store = program.folder / "home" / "data" / "conversations.sqlite"
    options = ("-m", "demo", "--session", "caf\udce9", "-s", "na\udcefve", "--max-new-tokens", "4")
    for question in ("One \udce9", "Two"):
        done = program(*options, question)
        assert done.returncode == 0, done.stderr
    conversation = Store(store).conversation(Store(store).find("caf\ufffd"), "")
    assert conversation.system == "na\ufffdve"
    assert [turn.question.content for turn in conversation.turns] == ["One \ufffd", "Two"]
