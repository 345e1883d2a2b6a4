"""A scripted chat server on loopback: each test says, step by step, what it sends and when it hangs up.

with ChatServer() as server:
    server.answers(sse("Hello", " there"))
    program("--endpoint", server.url, "Hi")
"""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.program import Program

MODELS = {"object": "list", "data": [{"id": "gemma-test", "object": "model", "owned_by": "vllm"}]}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: Any
    headers: Mapping[str, str]
    at: float


@dataclass(frozen=True)
class Reply:
    """`parts` are bytes to send, seconds to wait, HANG_UP, or HOLD until the client goes."""

    parts: tuple[bytes | float | str, ...]
    status: int = 200
    kind: str = "text/event-stream"
    headers: Mapping[str, str] = field(default_factory=dict)


HANG_UP, HOLD = "hang up", "hold"


def event(value: object) -> bytes:
    return b"data: " + (value.encode() if isinstance(value, str) else json.dumps(value).encode()) + b"\n\n"


def delta(text: str | None, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, **more}]}


def ending(finish: str = "stop", usage: Mapping[str, object] | None = None) -> bytes:
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
    counts = event({"choices": [], "usage": usage}) if usage else b""
    return event(last) + counts + event("[DONE]")


def sse(*texts: str, finish: str = "stop", usage: Mapping[str, object] | None = None) -> Reply:
    return Reply((*(event(delta(text)) for text in texts), ending(finish, usage)))


def page(value: object, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply((json.dumps(value).encode(),), status, "application/json", named)


def error(message: str, status: int = 400, **headers: str) -> Reply:
    return page({"error": {"message": message, "type": "BadRequestError"}}, status, **headers)


Script = Callable[[Request], Reply]


class ChatServer:
    """`answers` sets what POSTs get, one each, the last for ever; `pages` what GETs get."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.gone: list[float] = []  # when a client went away while it was held
        self.pages: dict[str, Reply] = {"/v1/models": page(MODELS)}
        self._replies: list[Reply | Script] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "ChatServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def posts(self) -> list[Request]:
        return [request for request in self.requests if request.method == "POST"]

    def answers(self, *replies: Reply | Script) -> None:
        self._replies = list(replies)

    def reply_to(self, request: Request) -> Reply:
        if request.method == "GET":
            return self.pages.get(request.path, page({"detail": "Not Found"}, 404))
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        return reply if isinstance(reply, Reply) else reply(request)


def _handler(chat: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: object) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, body, headers, time.perf_counter())
            chat.requests.append(request)
            reply = chat.reply_to(request)
            self.close_connection = True
            if reply.parts[:1] == (HANG_UP,):
                return
            self.send_response(reply.status)
            for name, value in {"Content-Type": reply.kind, **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                self._send(reply.parts)
            except (BrokenPipeError, ConnectionResetError):
                chat.gone.append(time.perf_counter())

        def _send(self, parts: Iterable[bytes | float | str]) -> None:
            for part in parts:
                if part == HANG_UP:
                    return
                if part == HOLD:
                    self.connection.settimeout(900)
                    if not self.connection.recv(1):
                        chat.gone.append(time.perf_counter())
                    return
                if isinstance(part, bytes):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    self.wfile.flush()
                else:
                    time.sleep(float(part))
            self.wfile.write(b"0\r\n\r\n")

    return Handler


PARTIAL = (event(delta("The beginning")), event(delta(" of it")))  # an answer that breaks off


def ask_server(program: Program, server: ChatServer, *words: str) -> subprocess.CompletedProcess[str]:
    return program("--endpoint", server.url, *words, stdin="")
