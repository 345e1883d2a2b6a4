"""Folders and files of the program's own are private, whatever the umask."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from localgemma_cli.chat.terminal.input_history import input_history
from localgemma_cli.environment import cache_folder, is_ours, make_private, private_opener
from localgemma_cli.sessions.store import Store, default_path


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_everything_made_for_a_home_is_private_parents_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "not/there/yet"))
    make_private(cache_folder())
    Store(default_path()).close()
    input_history(default_path().parent / "deeper/input-history", {}, tuple)
    with open(cache_folder() / "kept", "w", opener=private_opener) as file:
        file.write("x")
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
        assert is_ours(path.stat())
    assert {path.name for path in tmp_path.rglob("*") if path.is_dir()} == {
        *("not", "there", "yet", "cache", "data", "deeper")
    }


def test_a_folder_that_is_there_keeps_its_rights_and_a_file_is_no_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_private(tmp_path / "a/b")
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        make_private(tmp_path / "file")


def test_a_link_in_a_files_place_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic"):
        private_opener(str(tmp_path / "link"), os.O_WRONLY | os.O_TRUNC)
    assert (tmp_path / "mine").read_text() == "mine"
