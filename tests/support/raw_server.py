"""A server on loopback that writes bytes as they are: whatever HTTP forbids, a test can send.

with RawServer(lambda connection, request: connection.sendall(...)) as server:
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class RawRequest:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Handler = Callable[[socket.socket, RawRequest], None]


class RawServer:
    """`handler` writes the whole answer; the connection is closed after it."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[RawRequest] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "RawServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError):  # the client has gone, or sent what is no HTTP
            connection.settimeout(60)
            request = _read(connection)
            self.requests.append(request)
            self.handler(connection, request)


def _read(connection: socket.socket) -> RawRequest:
    data = b"".join(_until(connection, b"\r\n\r\n"))
    head, _, body = data.partition(b"\r\n\r\n")
    first, *fields = head.decode("latin1").split("\r\n")
    method, path, _version = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    return RawRequest(method, path, headers, body)


def _until(connection: socket.socket, end: bytes) -> Iterator[bytes]:
    data = b""
    while end not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ValueError("no request")
        data += piece
        yield piece


def response(body: bytes, *fields: str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    """A whole answer with its length; `fields` are more lines of the head."""
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *fields)
    return "\r\n".join((*lines, "Connection: close", "", "")).encode("latin1") + body


def opened(*fields: str, kind: str = "text/event-stream") -> bytes:
    """The head of an answer that lasts until the connection is closed."""
    lines = ("HTTP/1.1 200 OK", f"Content-Type: {kind}", *fields, "Connection: close", "", "")
    return "\r\n".join(lines).encode("latin1")
