"""A library from the cache is code: only the very bytes that were checked are loaded."""

import ctypes
import os
import shutil
import sys
from pathlib import Path

import pytest

from localgemma_cli.backends.pytorch.kernels import compiled

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="no C compiler, or no /proc"
)
COMMAND = ("cc", "-shared", "-fPIC")


def made(folder: Path, answer: int) -> Path:
    """A whole library, as the cache holds it, whose only function gives `answer`."""
    source, library = folder / f"{answer}.c", folder / f"{answer}.so"
    source.write_text(f"int answer(void) {{ return {answer}; }}")
    before = os.umask(0)
    try:
        compiled._compile(COMMAND, source, library)
    finally:
        os.umask(before)
    return library


def test_it_is_this_users_alone_under_any_umask_and_two_are_told_apart(tmp_path: Path) -> None:
    one, two = made(tmp_path, 1), made(tmp_path, 2)
    assert one.stat().st_mode & 0o777 == 0o600
    assert [compiled._load(each).answer() for each in (one, two)] == [1, 2]


def test_what_is_not_certainly_as_it_was_made_is_not_loaded(tmp_path: Path) -> None:
    library = made(tmp_path, 3)
    (tmp_path / "link.so").symlink_to(library)
    os.mkfifo(tmp_path / "pipe.so")
    (tmp_path / "folder.so").mkdir()
    shutil.copy(library, tmp_path / "open.so")
    (tmp_path / "open.so").chmod(0o666)
    shutil.copy(library, tmp_path / "hard.so")
    os.link(tmp_path / "hard.so", tmp_path / "another name")
    (tmp_path / "short.so").write_bytes(library.read_bytes()[:-40])
    for name in ("link", "pipe", "folder", "open", "hard", "short", "nowhere"):
        with pytest.raises(compiled._NotWhole):
            compiled._load(tmp_path / f"{name}.so")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_another_users_library_is_not_loaded(tmp_path: Path) -> None:
    library = made(tmp_path, 4)
    os.chown(library, 12345, 12345)
    with pytest.raises(compiled._NotWhole):
        compiled._load(library)


def test_a_path_that_changes_after_the_check_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = made(tmp_path, 5), made(tmp_path, 666)
    load = ctypes.CDLL

    def swapped(name: str) -> ctypes.CDLL:
        os.replace(bad, good)
        return load(name)

    monkeypatch.setattr(ctypes, "CDLL", swapped)
    assert compiled._load(good).answer() == 5
