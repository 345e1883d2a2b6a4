"""Files in a question: what is sent, and everything that is no text file."""

import os
from pathlib import Path

import pytest

from localgemma_cli.chat.attachments import Attachment, find_mentions, prepend_attachments, read_attachment
from localgemma_cli.errors import LocalGemmaError


def test_a_file_is_a_named_block_before_the_question(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes("\ufeffone\r\ntwo\n".encode())
    sent = prepend_attachments("Sum it up.", [read_attachment(str(tmp_path / "notes.txt"))])
    assert sent == "File notes.txt:\n```\none\ntwo\n```\n\nSum it up."


def test_a_file_cannot_close_its_own_fence() -> None:
    assert Attachment("a.md", "```\ncode\n`````\n").block.startswith("File a.md:\n``````\n")


def test_files_behind_an_at_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b c.txt"):
        (tmp_path / name).write_text("x")
    question = 'Compare @a.txt, @"b c.txt" and (@a.txt). Mail me@home.org, ask @someone, see @gone.txt.'
    assert find_mentions(question) == (["a.txt", "b c.txt"], ["gone.txt"])


def test_code_and_what_was_attached_before_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("```\n@b.txt @c.txt\n```")
    once = prepend_attachments("Sum up @a.txt", [read_attachment("a.txt")])
    assert find_mentions(once) == ([], [])
    assert find_mentions(f"{once} and @b.txt") == (["b.txt"], [])
    assert find_mentions("```\n@a.txt\n```\n@b.txt") == (["b.txt"], [])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.write_bytes(b"a\0b"), "is a binary file"),
        (lambda path: path.write_bytes(b"caf\xe9"), "invalid byte at position 3"),
        (lambda path: path.write_bytes(b" \n"), "is empty"),
        (lambda path: path.write_bytes(b"x" * (4 * 2**20 + 1)), "larger than 4.2 MB"),
    ],
)
def test_what_is_no_text_file_is_refused(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    make(tmp_path / "it")
    with pytest.raises(LocalGemmaError, match=message):
        read_attachment(str(tmp_path / "it"))


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("secret")
    (tmp_path / "it").chmod(0)
    if os.access(tmp_path / "it", os.R_OK):
        pytest.skip("needs a user other than root")
    with pytest.raises(LocalGemmaError, match="Permission denied"):
        read_attachment(str(tmp_path / "it"))
