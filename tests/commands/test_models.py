"""`localgemma models list` and `rm`, over copies that a real load kept."""

import json
import sys
from pathlib import Path

import pytest
from support.models import DEMO
from support.program import Program

ORG = "models--org--tiny"


@pytest.fixture
def loaded(program: Program) -> Program:
    done = program("-m", "demo", "--preset", "memory", "--max-new-tokens", "1", "Hi")
    assert done.returncode == 0, done.stderr
    return program


def kept(program: Program, *words: str) -> list[dict]:
    done = program("models", "list", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["kept"]


def weights(program: Program) -> list[Path]:
    return list((program.folder / "home").rglob("weights.safetensors"))


def test_a_kept_copy_is_listed_and_removed(loaded: Program) -> None:
    (copy,) = kept(loaded)
    assert (copy["model"], copy["source"], copy["problem"]) == ("demo", str(DEMO), None)
    assert copy["bytes"] >= weights(loaded)[0].stat().st_size
    assert f"demo  {copy['bytes'] / 1e6:>5.1f} MB  {DEMO}\n" in loaded("models", "list").stdout
    done = loaded("models", "rm", "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("removed 1.")
    assert (kept(loaded), weights(loaded)) == ([], [])


def test_a_second_load_uses_the_copy(loaded: Program) -> None:
    before = weights(loaded)[0].stat()
    assert loaded("-m", "demo", "--preset", "memory", "--max-new-tokens", "1", "Hi").returncode == 0
    assert weights(loaded)[0].stat().st_ino == before.st_ino


def test_damage_shows(loaded: Program) -> None:
    with weights(loaded)[0].open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    assert [copy["problem"] for copy in kept(loaded, "--verify")] == ["the file is damaged"]
    assert "the next load replaces it" in loaded("models", "list").stdout


def test_what_is_not_there_cannot_be_removed(program: Program) -> None:
    done = program("models", "rm", "2b")
    assert (done.returncode, done.stdout) == (4, "")
    assert "models list" in done.stderr
    assert weights(program) == []


@pytest.fixture
def downloaded(program: Program) -> Path:
    folder = program.folder / "hub" / "hub" / ORG
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / ("0" * 64)).write_bytes(b"x" * 1000)
    other = folder.with_name("models--org--other") / "blobs"
    other.mkdir(parents=True)
    return folder


def test_downloaded_weights_stay_unless_it_is_agreed(program: Program, downloaded: Path) -> None:
    listed = program("models", "list")
    assert "Other downloads in the hub's cache:\norg/tiny  0.0 MB of it on disk\n" in listed.stdout
    other = json.loads(program("models", "list", "--json").stdout)["other"]
    assert other == [{"id": "org/tiny", "on_disk": False, "disk_bytes": 1000}]
    done = program("models", "rm", "org/tiny")
    assert (done.returncode, done.stdout) == (0, "")
    assert "--yes" in done.stderr
    assert downloaded.is_dir()
    done = program("models", "rm", "org/tiny", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert "removed" in done.stdout
    assert not downloaded.exists()
    assert downloaded.with_name("models--org--other").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("answer", "stays"), [("y", False), ("n", True), ("", True)])
def test_a_terminal_is_asked(program: Program, downloaded: Path, answer: str, stays: bool) -> None:
    import pexpect

    child = pexpect.spawn(
        sys.executable, ["-m", "localgemma_cli", "models", "rm", "org/tiny"], env=program.env, timeout=600
    )
    child.expect(r"\[y/N\]")
    child.sendline(answer)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert downloaded.is_dir() is stays
