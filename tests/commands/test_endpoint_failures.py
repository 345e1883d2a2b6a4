"""`--endpoint`: a server that is busy, breaks off, refuses or cannot be reached."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from support.chat_server import (
    HANG_UP,
    HOLD,
    PARTIAL,
    ChatServer,
    Reply,
    ask_server,
    delta,
    error,
    event,
    page,
    sse,
)
from support.patience import patience
from support.program import COMMAND, Program
from support.schemas import validate


def test_a_full_context_is_exit_6(program: Program, server: ChatServer) -> None:
    server.answers(error("This model's maximum context length is 8192 tokens. However, you requested 9000"))
    done = ask_server(program, server, "--max-new-tokens", "500", "Hello")
    assert done.returncode == 6
    assert "max_tokens" not in server.posts[1].body  # the answer may be as long as there is room
    assert len(server.posts) == 2
    server.answers(error("the request exceeds the available context size", 500))
    assert ask_server(program, server, "-s", "Be kind.", "Hello").returncode == 6
    assert len(server.posts) == 3  # the system message is not to blame


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(program: Program, server: ChatServer, status: int) -> None:
    server.answers(error("busy", status, Retry_After="1"), sse("ok"))
    done = ask_server(program, server, "Hello")
    assert (done.returncode, done.stdout) == (0, "ok\n")
    assert "Trying again in 1 s" in done.stderr
    assert server.posts[1].at - server.posts[0].at >= 0.9


def test_a_connection_lost_before_the_first_token_is_retried(program: Program, server: ChatServer) -> None:
    server.answers(Reply((HANG_UP,)), Reply((event(delta(None)), HANG_UP)), sse("ok"))
    done = ask_server(program, server, "Hello")
    assert (done.returncode, done.stdout) == (0, "ok\n")
    assert done.stderr.count("Trying again") == 2


PATIENT = 6  # seconds of --endpoint-timeout: a server on a busy machine may be as late
MISCHIEF = {
    "hangs up": (Reply((*PARTIAL, HANG_UP)), "closed the connection"),
    "ends early": (Reply(PARTIAL), "closed the connection"),
    "error": (
        Reply((*PARTIAL, event({"error": {"message": "out of \x1b[1mmemory"}}))),
        "out of ␛[1mmemory",
    ),
    "bare error": (Reply((*PARTIAL, event({"error": "boom"}))), "boom"),
    "llama.cpp error": (Reply((*PARTIAL, b'error: {"code":500,"message":"boom"}\n\n')), "boom"),
    "no JSON": (Reply((*PARTIAL, event("nonsense"))), "not a JSON object"),
    "stall": (Reply((*PARTIAL, HOLD)), f"sent nothing for {PATIENT} s"),
    "half an event": (Reply((*PARTIAL, event(delta("x"))[:30], HANG_UP)), "closed the connection"),
}


@pytest.mark.parametrize("case", MISCHIEF.values(), ids=MISCHIEF.keys())
def test_a_broken_answer_is_exit_7_kept_and_marked(
    program: Program, server: ChatServer, case: tuple[Reply, str]
) -> None:
    reply, why = case
    server.answers(reply)
    patient = ("--endpoint-timeout", str(PATIENT) if "sent nothing" in why else "120")
    done = ask_server(program, server, *patient, "Hello")
    assert (done.returncode, done.stdout) == (7, "The beginning of it\n")
    first, second = done.stderr.splitlines()
    assert why in first
    assert "The answer is incomplete." in first
    assert second.startswith("  ")
    assert len(server.posts) == 1  # never again after the first token
    done = ask_server(program, server, *patient, "--json", "Hello")
    answer, failure = json.loads(done.stdout), json.loads(done.stderr)
    validate(answer, "answer")
    validate(failure, "error")
    assert (answer["finish_reason"], answer["response"]) == ("error", "The beginning of it")
    assert failure["error"]["kind"] == "endpoint"


def test_silence_from_the_start_is_exit_7(program: Program, server: ChatServer) -> None:
    server.answers(Reply((HOLD,)))
    done = ask_server(program, server, "--endpoint-timeout", "1", "Hello")
    assert (done.returncode, done.stdout) == (7, "")
    assert "sent nothing for 1 s" in done.stderr


@pytest.fixture
def closed_port() -> Iterator[int]:
    """That nothing listens at, nor can begin to meanwhile."""
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        yield int(owner.getsockname()[1])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:{port}", "Connection refused"),
        ("http://nowhere.invalid", "Host not found: nowhere.invalid"),
        ("https://127.0.0.1:{server}", "failed the TLS check"),
    ],
)
def test_a_server_that_cannot_be_reached(
    program: Program, server: ChatServer, closed_port: int, url: str, why: str
) -> None:
    url = url.format(port=closed_port, server=server.url.rsplit(":", 1)[1])
    done = program("--endpoint", url, "Hello", stdin="")
    assert (done.returncode, done.stdout) == (7, "")
    assert why in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (error("The model `9b` does not exist.", 404), "Available: gemma-test"),
        (error("bad temperature"), "bad temperature"),
        (page({}, 500), "failed (HTTP 500"),
        (Reply((b"<html>hello</html>",), kind="text/html"), "web page"),
        (page({"error": {"code": 400, "message": "no such thing"}}), "no such thing"),
    ],
    ids=["404", "400", "500", "a page", "200 with an error"],
)
def test_what_a_server_refuses(program: Program, server: ChatServer, reply: Reply, why: str) -> None:
    server.answers(reply)
    done = ask_server(program, server, "-m", "9b", "Hello")
    assert (done.returncode, done.stdout) == (7, "")
    assert why in done.stderr


@pytest.mark.parametrize("moment", ["before the first byte", "in the answer"])
def test_ctrl_c_hangs_up_at_once(program: Program, server: ChatServer, moment: str) -> None:
    server.answers(Reply((*(() if moment.startswith("before") else PARTIAL), HOLD)))
    process = subprocess.Popen(
        [*COMMAND, "--endpoint", server.url, "--jsonl", "Hello"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=program.folder,
        env=program.env,
    )
    assert process.stdout
    assert process.stderr
    while not server.posts:
        assert process.poll() is None
        time.sleep(0.01)
    if moment == "in the answer":
        while '" of it"' not in process.stdout.readline():
            assert process.poll() is None
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    answer = json.loads(process.stdout.read().splitlines()[-1])
    assert process.wait() == 130
    assert time.monotonic() - started < patience(10)  # the server would hold it for minutes
    assert "Traceback" not in process.stderr.read()
    assert answer["finish_reason"] == "interrupted"
    assert answer["response"] == ("" if moment.startswith("before") else "The beginning of it")
    while not server.gone:
        assert time.monotonic() - started < patience(10)
        time.sleep(0.01)
