"""The server from its start to its end: signals, clients that go, its sockets, its key."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from support.program import Program
from support.serving import ANSWER, ASK, CHAT, Answer, Serving, gated, serving

HOLD = {"messages": [{"role": "user", "content": "hold"}]}
KEY = "a-key-that-nobody-may-see"


def begin(server: Serving, **fields: object) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A stream that holds the model, once its first word has come."""
    connection = server.connect()
    connection.request("POST", CHAT, json.dumps({**HOLD, "stream": True, **fields}))
    response = connection.getresponse()
    while b"first" not in response.readline():
        pass
    return connection, response


def say(server: Serving, text: str) -> Answer:
    return server.ask(messages=[{"role": "user", "content": text}])


def content(answer: Answer) -> Any:
    return answer.json["choices"][0]["message"]["content"]


def test_a_client_that_disconnects_frees_the_model(gate: Serving) -> None:
    connection, response = begin(gate)
    response.close()
    connection.close()
    assert content(say(gate, "next")) == "next"


def test_a_client_that_waits_for_a_whole_answer_and_disconnects_frees_the_model(gate: Serving) -> None:
    connection = gate.connect()
    connection.request("POST", CHAT, json.dumps(HOLD))
    connection.close()
    assert content(say(gate, "next")) == "next"


def test_a_client_killed_in_mid_stream_frees_the_model(gate: Serving) -> None:
    code = (
        "import sys, urllib.request as u\n"
        "kind = {'Content-Type': 'application/json'}\n"
        "answer = u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode(), kind))\n"
        "while b'first' not in answer.readline(): pass\n"
        "print('streaming', flush=True)\n"
        "sys.stdin.read()"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", code, f"{gate.url}/chat/completions", json.dumps({**HOLD, "stream": True})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"streaming\n"
    client.kill()
    client.communicate()
    assert content(say(gate, "next")) == "next"


def test_a_client_that_leaves_the_queue_is_not_answered(gate: Serving) -> None:
    running, _ = begin(gate)
    waiting = gate.connect()
    waiting.request("POST", CHAT, json.dumps(HOLD))  # would hold the model too
    waiting.close()
    running.close()
    assert content(say(gate, "next")) == "next"


def test_past_the_queue_s_end_a_client_is_asked_to_try_later(tmp_path: Path) -> None:
    with gated(tmp_path, limit=1) as gate, ThreadPoolExecutor(2) as pool:
        running, _ = begin(gate)
        asked: list[Future[Answer]] = [pool.submit(say, gate, "next") for _ in range(2)]
        refused = wait(asked, return_when=FIRST_COMPLETED).done.pop()
        assert (refused.result().status, refused.result().error["code"]) == (429, "queue_full")
        assert int(refused.result().headers["retry-after"]) >= 1
        running.close()
        (other,) = (each for each in asked if each is not refused)
        assert content(other.result()) == "next"


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_running_answer(gate: Serving, sign: int) -> None:
    """The exit code of `gated_server.py` is the signal's number."""
    _, response = begin(gate)
    os.kill(gate.pid, sign)
    *_, last, done, end = response.read().decode().split("\n\n")
    assert json.loads(last.strip().removeprefix("data: "))["error"]["code"] == "server_stopping"
    assert (done, end) == ("data: [DONE]", "")
    assert os.waitstatus_to_exitcode(os.waitpid(gate.pid, 0)[1]) == sign


def test_a_failure_reaches_the_client_without_its_details(gate: Serving) -> None:
    answer = say(gate, "fail")
    assert (answer.status, answer.error["type"]) == (500, "server_error")
    assert "a bug" not in answer.error["message"]
    assert "a bug" in gate.written
    assert content(say(gate, "next")) == "next"


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_ends_with_the_exit_code_of_its_signal_and_removes_its_socket(
    program: Program, sign: int, code: int
) -> None:
    with serving(program) as server:
        path = Path(server.socket)
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert server.ask().status == 200
        assert server.stop(sign) == code
        assert not path.exists()
        assert "Traceback" not in server.written


def test_the_unix_socket_answers_and_a_stale_one_is_replaced(program: Program) -> None:
    path = program.folder / "own.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with serving(program, "--socket", str(path)):
        connection = http.client.HTTPConnection("any-name")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        connection.request("POST", CHAT, json.dumps(ASK))
        assert json.load(connection.getresponse())["choices"][0]["message"]["content"] == ANSWER
        connection.close()
        taken = program("serve", "-m", "demo", "--port", "0", "--socket", str(path))
        assert taken.returncode == 2
        assert "Another server listens on" in taken.stderr


def test_a_used_port_is_named(program: Program, served: Serving) -> None:
    done = program("serve", "-m", "demo", "--port", str(served.port))
    assert done.returncode == 1
    assert f"port {served.port}: Address already in use." in done.stderr


def test_other_machines_need_a_key(program: Program) -> None:
    done = program("serve", "-m", "demo", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "without a key" in done.stderr
    assert "--api-key-file" in done.stderr


@pytest.mark.parametrize("place", ["file", "variable"])
def test_a_key_is_required_and_never_shown(program: Program, place: str) -> None:
    file = program.folder / "key"
    file.write_text(f"{KEY}\n")
    keyed = program if place == "file" else program.with_environment(LOCALGEMMA_SERVE_KEY=KEY)
    words = ("--api-key-file", str(file)) if place == "file" else ()
    with serving(keyed, "-v", "--host", "0.0.0.0", *words) as server:
        assert "Exposed" in server.written
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
            refused = server.send(CHAT, ASK, **header)
            assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        assert server.send("/v1/models").status == 401
        assert server.send("/health").json == {"status": "ok"}
        answer = server.send(CHAT, ASK, Authorization=f"Bearer {KEY}", Host="any.name.example")
        assert content(answer) == ANSWER
        assert server.stop() == 0
        assert KEY not in server.written


@pytest.mark.parametrize("text", ["", " \n", "two words", "schlüssel"])
def test_a_key_that_cannot_be_used_is_refused_without_showing_it(program: Program, text: str) -> None:
    file = program.folder / "key"
    file.write_text(text)
    done = program("serve", "-m", "demo", "--api-key-file", str(file))
    assert done.returncode == 2
    assert str(file) in done.stderr
    assert not text.strip() or text not in done.stderr


def test_a_log_line_has_neither_prompt_nor_query(served: Serving) -> None:
    served.send("/health?secret=in-the-query")
    served.ask(messages=[{"role": "user", "content": "in-the-prompt"}])
    assert f"POST {CHAT} 200" in served.written
    assert "in-the-query" not in served.written
    assert "in-the-prompt" not in served.written
