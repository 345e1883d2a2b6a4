"""Standard input beside a prompt: each row of the table in docs/scripting.md, with real descriptors."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.program import COMMAND, Program

from localgemma_cli.chat import standard_input
from localgemma_cli.chat.standard_input import (
    AT_ONCE,
    is_from_a_command,
    read_stdin,
    read_stdin_beside_words,
)
from localgemma_cli.errors import UsageError

ASK = f"{' '.join(COMMAND)} prompt -m demo --json"
NOTHING_SENT = "Standard input is not attached: it sent nothing. -n omits the wait; -f - waits for its end."
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def asked(program: Program, line: str) -> tuple[list[str], str]:
    """The prompts and the notes of a line of bash, where `ask` is the program."""
    done = program.shell(f'ask() {{ {ASK} "$@"; }}\n{line}')
    assert done.returncode == 0, done.stderr
    texts = (json.loads(each)["text"] for each in done.stdout.splitlines())
    return [text.split("user\n", 1)[1].split("<end_of_turn>")[0] for text in texts], done.stderr


@pytest.mark.parametrize(
    ("line", "prompts"),
    [
        ("ask Say: < file", ["Say:\n\none\ntwo"]),
        ("cat file | ask Say:", ["Say:\n\none\ntwo"]),
        (f"(sleep {2 * AT_ONCE}; echo late) | ask Say:", ["Say:\n\nlate"]),
        ("ask Say: <&-", ["Say:"]),
        ("ask Say: 0>/dev/null", ["Say:"]),  # as nohup does it
        ("yes | ask -n Say:", ["Say:"]),
        ("LOCALGEMMA_NO_STDIN=1 ask Say: < file", ["Say:"]),
        ("ask -n - < file", ["one\ntwo"]),
        ('cat file | while read -r line; do ask -n "$line"; done', ["one", "two"]),
    ],
)
def test_what_is_attached_to_the_words(program: Program, line: str, prompts: list[str]) -> None:
    (program.folder / "file").write_text("one\ntwo\n")
    assert asked(program, line) == (prompts, "")


def test_a_loop_over_a_file_keeps_its_lines(program: Program) -> None:
    (program.folder / "file").write_text("one\ntwo\n")
    prompts, notes = asked(program, 'while read -r line; do ask "$line"; done < file')
    assert prompts == ["one", "two"]
    assert notes == "note: Standard input is not attached: another program reads it. -n omits this note.\n"


def test_a_script_that_the_shell_reads_from_a_file_keeps_its_lines(program: Program) -> None:
    (program.folder / "script").write_text(f"{ASK} one\n{ASK} two\n")
    assert asked(program, "bash < script")[0] == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("yes | ask Say:", "Standard input exceeds 4.2 MB."),
        ("ask -n < /dev/null", "--no-stdin needs a prompt."),
        ("LOCALGEMMA_NO_STDIN=1 ask < /dev/null", "LOCALGEMMA_NO_STDIN needs a prompt."),
    ],
)
def test_what_cannot_be_attached_is_wrong_usage(program: Program, line: str, message: str) -> None:
    done = program.shell(f'ask() {{ {ASK} "$@"; }}\n{line}')
    assert (done.returncode, done.stdout) == (2, "")
    assert json.loads(done.stderr)["error"]["message"] == message


def attached(descriptor: int) -> tuple[str, list[str]]:
    """What is attached if this is standard input, and the notes."""
    notes: list[str] = []
    with open(descriptor, encoding="utf-8") as stdin:
        return read_stdin_beside_words(stdin, notes.append), notes


@contextmanager
def held_open(kind: str) -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, or of a socket as from ssh; the other end stays open."""
    if kind == "pipe":
        reading, writing = os.pipe()
    else:
        reading, writing = (each.detach() for each in socket.socketpair())
    try:
        yield reading, writing
    finally:
        os.close(writing)


@needs_proc
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_the_caller_holds_open_without_writing_is_not_waited_for(kind: str) -> None:
    with held_open(kind) as (stdin, _):
        assert attached(stdin) == ("", [NOTHING_SENT])


@needs_proc
def test_a_program_that_a_caller_starts_with_an_open_pipe_answers(program: Program) -> None:
    with held_open("pipe") as (stdin, _):
        done = subprocess.run(
            [*ASK.split(), "Say:"],
            stdin=stdin,
            capture_output=True,
            text=True,
            env=program.env,
            timeout=600,
            check=True,
        )
        os.close(stdin)
    assert done.stderr == f"note: {NOTHING_SENT}\n"


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_the_caller_has_written_is_attached(kind: str) -> None:
    with held_open(kind) as (stdin, writing):
        os.write(writing, b"text\n")
        os.dup2(os.open(os.devnull, os.O_RDWR), writing)  # closes the only writing end
        assert attached(stdin) == ("text\n", [])


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_an_empty_standard_input_attaches_nothing(kind: str) -> None:
    if kind == "device":
        assert attached(os.open(os.devnull, os.O_RDONLY)) == ("", [])
        return
    with held_open(kind) as (stdin, writing):
        os.dup2(os.open(os.devnull, os.O_RDWR), writing)
        assert attached(stdin) == ("", [])


def test_a_file_whose_end_is_reached_attaches_nothing_and_needs_no_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one\n")
    stdin = os.open(tmp_path / "file", os.O_RDONLY)
    os.read(stdin, 10)
    assert attached(stdin) == ("", [])


def test_a_descriptor_that_another_program_made_non_blocking_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with subprocess.Popen(["bash", "-c", "echo one; sleep 1; echo two"], stdout=writing):
        os.close(writing)
        assert attached(reading) == ("one\ntwo\n", [])


def test_a_descriptor_for_writing_is_wrong_usage(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    with (
        open(descriptor, "w", encoding="utf-8") as stdin,
        pytest.raises(UsageError, match=r"Standard input cannot be read: Bad file descriptor\."),
    ):
        read_stdin(stdin)


def test_a_person_learns_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command begins to write once the note is there."""
    monkeypatch.setattr(standard_input, "_QUIET_FOR", 0.1)
    (gate, opens), (reading, writing) = os.pipe(), os.pipe()
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        os.write(opens, b"now\n")

    with subprocess.Popen(["bash", "-c", "read; echo late"], stdin=gate, stdout=writing):
        os.close(writing)
        with open(reading, encoding="utf-8") as stdin:
            assert read_stdin_beside_words(stdin, note) == "late\n"
    assert notes == ["Waiting for standard input. -n omits the wait."]
    os.close(gate)
    os.close(opens)


@needs_proc
def test_a_pipe_is_from_a_command_if_it_is_another_process_s_output(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    assert not is_from_a_command(reading)
    with subprocess.Popen(["sleep", "600"], pass_fds=[writing], stdout=subprocess.DEVNULL) as holder:
        assert not is_from_a_command(reading)
        holder.kill()
    with subprocess.Popen(["sleep", "600"], stdout=writing) as command:
        assert is_from_a_command(reading)
        command.kill()
    assert not is_from_a_command(reading)
    os.mkfifo(tmp_path / "named")
    named = os.open(tmp_path / "named", os.O_RDWR)
    assert is_from_a_command(named)
    for each in (reading, writing, named):
        os.close(each)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
@needs_proc
def test_a_command_of_another_user_in_this_pipeline_is_waited_for() -> None:
    """`sudo command | localgemma`: what another user's process has open is hidden."""
    probe = (
        "import os, sys\n"
        "from localgemma_cli.chat.standard_input import is_from_a_command\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "print(is_from_a_command(0))"
    )
    for together, expected in ((True, "True"), (False, "False")):  # apart from the tests' other processes
        reading, writing = os.pipe()
        with subprocess.Popen(["sleep", "600"], stdout=writing, process_group=0) as other:
            os.close(writing)
            done = subprocess.run(
                [sys.executable, "-c", probe],
                stdin=reading,
                capture_output=True,
                text=True,
                process_group=other.pid if together else 0,
            )
            assert done.stdout.strip() == expected, done.stderr
            other.kill()
        os.close(reading)
