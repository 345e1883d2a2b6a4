"""Starting: twenty first calls leave one process; what is left of others, or is not ours, is not used."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub_calls import wait_until
from support.kept import KEEP, keeping_program, kept_rows, kept_socket
from support.program import Program

ASK = ("-m", "demo", "--no-save", "--temperature", "0", "Who are you?")
ANSWER = "I am the demo of localgemma: "
CALLS = 20
HERE = "The model is loaded for this call."


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with keeping_program() as program:
        yield program


@pytest.fixture(scope="module")
def place(program: Program) -> Path:
    """The socket of the first process, which twenty calls at once have started."""
    logs = [open(program.folder / f"log{number}", "w+b") for number in range(CALLS)]  # noqa: SIM115
    pids = [program.start(*KEEP, *ASK, stdout=log.fileno(), stderr=log.fileno()) for log in logs]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * CALLS
    for log in logs:
        log.seek(0)
        said = log.read().decode()
        assert said.startswith(ANSWER)
        assert said.count("\n") == 1
        log.close()
    return kept_socket(program)


def test_twenty_first_calls_at_once_leave_one_process(program: Program, place: Path) -> None:
    (row,) = kept_rows(program)
    assert place.exists()
    processes = subprocess.run(
        ["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    alive = [line for line in processes if "localgemma_cli.warm.process" in line]
    ours = [line for line in alive if _home_of(int(line.split()[0])) == str(program.folder / "home")]
    assert [int(line.split()[0]) for line in ours] in ([row["pid"]], [])


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_process_gets_no_secrets() -> None:
    secrets = dict.fromkeys(("HF_TOKEN", "OPENAI_API_KEY", "LOCALGEMMA_SERVE_KEY"), "a-secret")
    with keeping_program() as program:
        assert program.with_environment(**secrets)(*KEEP, *ASK).returncode == 0
        (row,) = kept_rows(program)
        variables = Path(f"/proc/{row['pid']}/environ").read_bytes()
        assert b"a-secret" not in variables
        assert b"LOCALGEMMA_HOME=" in variables


def _home_of(pid: int) -> str | None:
    """LOCALGEMMA_HOME of a process, where the system shows it."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((each.decode()[16:] for each in variables if each.startswith(b"LOCALGEMMA_HOME=")), None)


def answer_beside(program: Program, *more: str) -> str:
    """The only line on stderr of a call that is answered all the same."""
    done = program(*KEEP, *more, *ASK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(ANSWER)
    assert done.stderr.count("\n") <= 1
    return done.stderr.removesuffix("\n")


def test_a_call_after_a_crash_starts_a_process_again(program: Program, place: Path) -> None:
    (row,) = kept_rows(program)
    os.kill(int(str(row["pid"])), signal.SIGKILL)
    wait_until(lambda: kept_rows(program) == [])
    assert place.exists()
    said = "warning: The process that keeps the model has ended unexpectedly. The model is loaded again."
    assert answer_beside(program) == said
    assert answer_beside(program) == ""
    (again,) = kept_rows(program)
    assert again["pid"] != row["pid"]


def test_a_process_that_hangs_is_left_alone_and_stop_ends_it(program: Program, place: Path) -> None:
    (row,) = kept_rows(program)
    pid = int(str(row["pid"]))
    os.kill(pid, signal.SIGSTOP)
    said = f"warning: The process that keeps the model does not answer. {HERE}"
    assert answer_beside(program) == said
    done = program("stop")
    assert (done.returncode, done.stderr) == (0, f"Freed process {pid}.\n")
    assert not place.exists()


def test_another_program_on_the_socket_is_not_used(program: Program, place: Path) -> None:
    program("stop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        code = (
            "import socket, sys\n"
            "listener = socket.socket(fileno=int(sys.argv[1]))\n"
            "while True:\n"
            "    connection, _ = listener.accept()\n"
            "    connection.sendall(b'HTTP/1.1 400 Bad Request\\n')\n"
        )
        impostor = subprocess.Popen(
            [sys.executable, "-c", code, str(listener.fileno())], pass_fds=[listener.fileno()]
        )
        try:
            said = "warning: The process that keeps the model cannot be used: another program has its socket."
            assert answer_beside(program) == f"{said} {HERE}"
            assert answer_beside(program, "-q") == ""
        finally:
            impostor.kill()
            impostor.wait()
            place.unlink()


def test_a_socket_of_another_user_is_not_used(program: Program, place: Path) -> None:
    if not hasattr(os, "getuid") or os.getuid() != 0 or sys.platform != "linux":
        pytest.skip("needs root, to listen as another user")
    program("stop")
    code = (
        "import os, socket, sys, time\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(sys.argv[1])\n"
        "os.setuid(65534)\n"
        "listener.listen()\n"
        "print(flush=True)\n"
        "time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE)
    try:
        assert other.stdout
        other.stdout.readline()
        said = f"warning: The process that keeps the model has a socket of another user. {HERE}"
        assert answer_beside(program) == said
    finally:
        other.kill()
        other.communicate()
        place.unlink()


def test_a_folder_that_others_can_enter_is_not_used(program: Program, place: Path) -> None:
    program("stop")
    place.parent.chmod(0o755)
    try:
        assert "has no private folder" in answer_beside(program)
        assert not place.exists()
    finally:
        place.parent.chmod(0o700)


def test_a_folder_that_cannot_be_made_costs_no_answer(program: Program) -> None:
    home = program.folder / "other"
    home.mkdir()
    (home / "run").write_text("a file")
    assert "cannot be created" in answer_beside(program.with_environment(LOCALGEMMA_HOME=str(home)))


def test_a_process_that_cannot_listen_costs_no_answer(program: Program, place: Path) -> None:
    program("stop")
    place.mkdir()
    try:
        assert HERE in answer_beside(program)
    finally:
        place.rmdir()


def test_a_process_that_ends_at_once_costs_no_answer(program: Program, place: Path) -> None:
    program("stop")
    folder = program.folder / "broken"
    folder.mkdir()
    code = "import os, sys\nif any('warm.process' in word for word in sys.orig_argv): os._exit(3)\n"
    (folder / "sitecustomize.py").write_text(code)
    broken = program.with_environment(PYTHONPATH=str(folder))
    said = answer_beside(broken)
    assert said == f"warning: The process that keeps the model cannot be started: it ended. {HERE}"
    assert not place.exists()
