"""`localgemma serve` in a process of its own, and requests to it."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.program import Program

ASK = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
ANSWER = (
    "I am the demo of localgemma: a very small Gemma 2 model that comes with the program and knows only the"
    " program."
)
CHAT = "/v1/chat/completions"
_URL = re.compile(r" at http://([\d.]+):(\d+)/v1")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The objects of a stream, which must end with [DONE]."""
        *lines, done, last = self.data.decode().split("\n\n")
        assert (done, last) == ("data: [DONE]", "")
        return [json.loads(line.removeprefix("data: ")) for line in lines]


@dataclass(frozen=True)
class Serving:
    """A server that has announced itself; `log` is what it writes to stderr."""

    pid: int
    host: str
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"

    @property
    def written(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def socket(self) -> str:
        return self.written.partition("Unix socket: ")[2].partition("\n")[0]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=600)

    def send(self, path: str, body: object = None, method: str | None = None, **headers: str) -> Answer:
        """One request; `body` is JSON unless it is bytes. `_` in the names of headers is written `-`."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = self.connect()
        try:
            connection.request(method or ("GET" if data is None else "POST"), path, data, named)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def ask(self, **fields: object) -> Answer:
        return self.send(CHAT, {**ASK, **fields})

    def stop(self, sign: int = signal.SIGTERM) -> int:
        """End it; returns the exit code."""
        os.kill(self.pid, sign)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def serving(program: Program, *words: str) -> Iterator[Serving]:
    """`localgemma serve -m demo WORDS` on a free port, ended afterwards unless the test has ended it."""
    log = program.folder / "serve.log"
    with log.open("wb") as errors:
        pid = program.start(
            "serve", "-m", "demo", "--port", "0", *words, stdout=errors.fileno(), stderr=errors.fileno()
        )
    with _ending(pid):
        yield _wait(pid, log)


@contextmanager
def gated(folder: Path, limit: int = 8) -> Iterator[Serving]:
    """The server with the backend of gated_server.py, which answers `hold` until it is cancelled."""
    log = folder / "gated.log"
    script = Path(__file__).parents[1] / "serve" / "gated_server.py"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, script, str(limit)], stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
        )
    process.returncode = 0  # its end is waited for by its number
    with _ending(process.pid):
        yield _wait(process.pid, log)


@contextmanager
def _ending(pid: int) -> Iterator[None]:
    try:
        yield
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):  # the test has ended it
            pass


def _wait(pid: int, log: Path) -> Serving:
    while not (found := _URL.search(log.read_text(encoding="utf-8"))):
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), log.read_text(encoding="utf-8")
        time.sleep(0.05)
    return Serving(pid, found[1], int(found[2]), log)
