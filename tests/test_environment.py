"""The world outside may be odd: variables, folders and streams that nobody would set on purpose."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.program import COMMAND, Program

from localgemma_cli.environment import Rank, cache_folder, config_folder, data_folder, torchrun_rank
from localgemma_cli.errors import UsageError


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, Rank(1, 2)),
        ({"WORLD_SIZE": "2"}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "one", "WORLD_SIZE": "2"}, None),
        ({"RANK": "7", "WORLD_SIZE": "2"}, None),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, None),
    ],
    ids=str,
)
def test_only_what_torchrun_sets_makes_a_rank(variables: dict[str, str], rank: Rank | None) -> None:
    assert torchrun_rank({"TORCHELASTIC_RUN_ID": "x", **variables}) == rank
    assert torchrun_rank(variables) is None


def test_a_home_of_nobody_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", "~nobody-of-that-name/x")
    for folder in (config_folder, cache_folder, data_folder):
        with pytest.raises(UsageError, match="LOCALGEMMA_HOME"):
            folder()


def test_asking_for_a_folder_does_not_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / "cache"
    assert not (tmp_path / "home").exists()


def test_lists_need_no_folder_of_their_own(program: Program) -> None:
    (program.folder / "home").write_text("a file, so that no folder can be made here")
    done = program("models")
    assert (done.returncode, done.stderr) == (0, "")
    assert "google/gemma-2-2b-it" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("--version > /dev/full", 1, "No space left"),
        ("--help > /dev/full", 1, "No space left"),
        ("plan -m 9b > /dev/full", 1, "No space left"),
        ("models list --json > /dev/full", 1, "No space left"),
        ("--help >&-", 1, "stdout is closed"),
        ("models list --json >&-", 1, "stdout is closed"),
        ("-m nonsense hi 2> /dev/full", 4, ""),
        ("-m nonsense hi 2>&-", 4, ""),
        ("--version <&- 2>&-", 0, ""),
    ],
)
def test_streams_that_cannot_be_used(program: Program, line: str, code: int, says: str) -> None:
    shell = f"{' '.join(COMMAND)} {line}"
    done = program.shell(shell)
    assert done.returncode == code
    assert says in done.stderr
    assert "Unexpected error" not in done.stderr
    assert "Traceback" not in done.stderr


def test_standard_input_and_a_commands_output_are_attached_as_files(program: Program) -> None:
    words = "-m demo --no-save --max-new-tokens 2 -f - -f <(echo two words) Explain"
    done = program.shell(f"echo one | {' '.join(COMMAND)} {words}")
    assert done.returncode == 0, done.stderr
    stdin, pipe = done.stderr.splitlines()
    assert stdin.startswith("[standard input: ")
    assert pipe.endswith(" tokens]")
    for wrong in (["-f", "-", "-"], ["-f", "-"]):
        assert program("-m", "demo", *wrong, stdin="text").returncode == 2


_LEAVING = """
import os
from localgemma_cli import cli
from localgemma_cli.models.load_errors import suppress_panics

def run(words, streams):
    with suppress_panics():
        os.write(2, b"a panic")
        streams.say("Interrupted.")
        os._exit(130)

cli.run = run
cli.main()
"""


def test_a_message_is_written_at_once_while_another_thread_holds_back_descriptor_2() -> None:
    """As after a Ctrl-C, and at the prompt, while a tokenizer loads."""
    done = subprocess.run([sys.executable, "-c", _LEAVING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")
