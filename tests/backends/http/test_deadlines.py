"""Whatever a server does instead of answering ends in time, in little memory, and at once by Ctrl-C."""

import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.chat_server import MODELS, delta, ending, event
from support.raw_server import RawRequest, RawServer, opened, response

from localgemma_cli.backends.http import backend as http_backend
from localgemma_cli.backends.http import transport
from localgemma_cli.backends.http.backend import HttpBackend, connect
from localgemma_cli.backends.http.endpoint import parse_endpoint
from localgemma_cli.conversation import Message
from localgemma_cli.errors import EndpointError, UsageError
from localgemma_cli.events import Delta, Finished
from localgemma_cli.sampling import Sampling

TIMEOUT = 1.0
ENDLESS = 600.0  # how long a server does the same
PATIENCE = 120.0  # of a test, on a busy machine
MIB = 2**20
ASKED = (Message("user", "Hello"),)
LISTED = response(json.dumps(MODELS).encode())

Write = Callable[[socket.socket], None]


def for_ever(chunk: bytes, *, pause: float = 0.0) -> Write:
    def write(connection: socket.socket) -> None:
        until = time.monotonic() + ENDLESS
        while time.monotonic() < until:
            connection.sendall(chunk)
            time.sleep(pause)

    return write


def bytewise(data: bytes) -> Write:
    def write(connection: socket.socket) -> None:
        for at in range(len(data)):
            connection.sendall(data[at : at + 1])
            time.sleep(0.1)

    return write


def then(first: bytes, write: Write) -> Write:
    def both(connection: socket.socket) -> None:
        connection.sendall(first)
        write(connection)

    return both


BOMB = gzip.compress(b"\n" * 200 * MIB)
ZEROS = gzip.compress(b"data: " + b"a" * 200 * MIB)
START, GZIPPED = opened(), opened("Content-Encoding: gzip")
EMPTY = event({"choices": [{"index": 0, "delta": {}, "finish_reason": None}]})
STALLS: dict[str, Write] = {
    "silence": lambda connection: time.sleep(ENDLESS),
    "a trickling head": for_ever(b"X", pause=0.1),
    "endless header lines": then(b"HTTP/1.1 200 OK\r\n", for_ever(b"A: b\r\n", pause=0.05)),
    "endless 100 Continue": for_ever(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "one byte per second": then(START, bytewise(event(delta("x")) * 100)),
    "newlines": then(START, for_ever(b"\n" * 65536)),
    "blanks": then(START, for_ever(b" " * 65536)),
    "comments": then(START, for_ever(b": hello\n\n" * 1000)),
    "slow comments": then(START, for_ever(b": hello\n\n", pause=0.1)),
    "empty events": then(START, for_ever(b"data:\n\n" * 1000)),
    "null events": then(START, for_ever(b"event: ping\ndata: null\n\n", pause=0.1)),
    "empty deltas": then(START, for_ever(EMPTY, pause=0.1)),
    "data without a blank line": then(START, for_ever(b"data: " + b"a" * 60 + b"\n")),
    "a line without an end": then(START, for_ever(b"data: " + b"a" * 65536)),
    "an object without an end": then(START, for_ever(b'{"a": "' + b"b" * 65536)),
    "a bomb": then(GZIPPED, lambda connection: connection.sendall(BOMB)),
    "a bomb in one line": then(
        opened("Content-Encoding: gzip"), lambda connection: connection.sendall(ZEROS)
    ),
    "a bomb in a bomb": then(
        opened("Content-Encoding: gzip, gzip"), lambda connection: connection.sendall(gzip.compress(BOMB))
    ),
    "an endless answer": then(START, for_ever(event(delta("x" * 1000)) * 60)),
    "an endless refusal": then(
        b"HTTP/1.1 400 Bad\r\nConnection: close\r\n\r\n", for_ever(b"no! ", pause=0.05)
    ),
}


def answering(write: Write) -> Callable[[socket.socket, RawRequest], None]:
    """Models are listed well; the chat is written by `write`."""

    def handle(connection: socket.socket, request: RawRequest) -> None:
        if request.method == "GET":
            connection.sendall(LISTED)
        else:
            write(connection)

    return handle


def connected(server: RawServer, timeout: float) -> HttpBackend:
    return connect(parse_endpoint(server.url, timeout=timeout, environ={}), lambda _: None, lambda _: None)


def backend_of(server: RawServer, timeout: float = TIMEOUT) -> HttpBackend:
    """`timeout` is that of the answer; a list of models may come late on a busy machine."""
    backend = connected(server, ENDLESS)
    backend._endpoint = replace(backend._endpoint, timeout=timeout)
    return backend


def answer_of(backend: HttpBackend) -> None:
    """Raises what broke it off."""
    for happened in backend.stream(ASKED, Sampling(), threading.Event()):
        if isinstance(happened, Finished) and happened.error:
            raise happened.error


def memory(name: str) -> int:
    """Bytes, from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


@pytest.fixture
def little_memory() -> Iterator[None]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    yield
    assert memory("VmHWM") - before < 200 * MIB


@pytest.mark.parametrize("write", STALLS.values(), ids=STALLS.keys())
def test_what_is_no_answer_ends_in_time_and_in_little_memory(write: Write, little_memory: None) -> None:
    with RawServer(answering(write)) as server:
        backend = backend_of(server)
        began = time.monotonic()
        with pytest.raises(EndpointError):
            answer_of(backend)
        assert time.monotonic() - began < PATIENCE
        assert len(server.requests) <= 2  # it is not asked again and again


@pytest.mark.parametrize(
    "name", ["a trickling head", "endless 100 Continue", "slow comments", "newlines", "a bomb"]
)
def test_a_list_of_models_that_never_ends(name: str, little_memory: None) -> None:
    with RawServer(lambda connection, _: STALLS[name](connection)) as server:
        began = time.monotonic()
        with pytest.raises(EndpointError):
            answer_of(connected(server, TIMEOUT))
        assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize(
    "name", ["silence", "endless 100 Continue", "newlines", "a bomb", "data without a blank line"]
)
def test_a_cancelled_wait_ends_at_once(name: str) -> None:
    with RawServer(answering(STALLS[name])) as server:
        backend, cancel = backend_of(server, ENDLESS), threading.Event()
        pressed: list[float] = []

        def press() -> None:
            pressed.append(time.monotonic())
            cancel.set()

        threading.Timer(0.3, press).start()
        try:
            (*_, last) = backend.stream(ASKED, Sampling(), cancel)
        except EndpointError:
            return  # a flood was over before
        assert time.monotonic() - pressed[0] < PATIENCE
        assert isinstance(last, Finished)
        assert last.finish_reason == "interrupted"


class Clock:
    """Time passes when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(transport, "time", stopped)
    return stopped


def test_a_slow_answer_lasts_as_long_as_tokens_come(clock: Clock) -> None:
    came = threading.Semaphore(0)

    def slowly(connection: socket.socket) -> None:
        connection.sendall(START)
        for _ in range(8):
            clock.now += 0.9
            connection.sendall(event(delta("x")))
            came.acquire()
        connection.sendall(ending(usage={"completion_tokens": 8}))

    happened = []
    with RawServer(answering(slowly)) as server:
        for each in backend_of(server, timeout=2.0).stream(ASKED, Sampling(), threading.Event()):
            happened.append(each)
            came.release()
    *deltas, last = happened
    assert deltas == [Delta("x")] * 8
    assert isinstance(last, Finished)
    assert (last.finish_reason, last.error, last.usage.completion_tokens) == ("stop", None, 8)


def test_what_came_while_the_program_was_stopped_is_read(clock: Clock) -> None:
    """By Ctrl-Z, or by a pager that reads no further: the server sent all that it had to send."""
    stopped = threading.Event()

    def answers(connection: socket.socket) -> None:
        connection.sendall(START + event(delta("one ")))
        stopped.wait()
        connection.sendall(event(delta("two")) + ending())

    with RawServer(answering(answers)) as server:
        events = backend_of(server, timeout=2.0).stream(ASKED, Sampling(), threading.Event())
        assert next(events) == Delta("one ")
        clock.now += 1000
        stopped.set()
        second, last = events
    assert second == Delta("two")
    assert isinstance(last, Finished)
    assert (last.finish_reason, last.error) == ("stop", None)


@pytest.mark.parametrize("after", [for_ever(b": still here\n\n", pause=0.05), for_ever(EMPTY * 100)])
def test_a_whole_answer_does_not_wait_for_a_server_that_goes_on(
    after: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_backend, "_USAGE_SECONDS", TIMEOUT)
    finish = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    with RawServer(answering(then(START + event(delta("whole")) + finish, after))) as server:
        began = time.monotonic()
        *deltas, last = backend_of(server, ENDLESS).stream(ASKED, Sampling(), threading.Event())
        assert time.monotonic() - began < PATIENCE
    assert deltas == [Delta("whole")]
    assert isinstance(last, Finished)
    assert (last.finish_reason, last.error) == ("stop", None)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_an_answer_that_is_compressed_all_the_same_is_read(encoding: str) -> None:
    stream = event(delta("Grüße ")) + event(delta("x" * 200_000)) + ending()
    packed = gzip.compress(stream) if encoding == "gzip" else zlib.compress(stream)
    write = then(opened(f"Content-Encoding: {encoding}"), lambda connection: connection.sendall(packed))
    with RawServer(answering(write)) as server:
        *deltas, _ = backend_of(server, ENDLESS).stream(ASKED, Sampling(), threading.Event())
    assert "".join(each.text for each in deltas if isinstance(each, Delta)) == "Grüße " + "x" * 200_000


@pytest.mark.parametrize("timeout", [float("inf"), float("nan"), 0.0, -1.0, 1e300, 86_401.0])
def test_a_timeout_out_of_range_is_refused_with_the_range(timeout: float) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 86400 seconds"):
        parse_endpoint("http://h", timeout=timeout, environ={})
