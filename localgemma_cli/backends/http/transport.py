"""One HTTP exchange in a thread of its own, so that whoever waits for it can give up at any moment."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import httpx2

from localgemma_cli.backends.http.endpoint import Endpoint
from localgemma_cli.backends.http.failures import silent, stalling, transport_error
from localgemma_cli.backends.http.sse import decoded

_CONNECT_SECONDS = 10.0
_POLL_SECONDS = 0.05
_FILLER_BYTES = 8 * 2**20  # without an answer in them
_REFUSAL_BYTES = 64 * 2**10  # of an answer that is only quoted


class Cancelled(Exception):
    """The user gave up."""


@dataclass(frozen=True)
class Head:
    status: int
    headers: Mapping[str, str]

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


_Item = Head | bytes | Exception | None  # None ends the body


class Exchange:
    """A request on its way: `head`, then `chunks` of the body as they come; `close` at any time.

    The whole of it has the endpoint's timeout and a bound in bytes, both counted anew with each `allow`:
    what only keeps the connection busy is no reason to wait longer.
    """

    def __init__(
        self, endpoint: Endpoint, method: str, url: str, body: Mapping[str, object] | None, cancel: Event
    ) -> None:
        self._endpoint, self._cancel = endpoint, cancel
        self._items: Queue[_Item] = Queue(maxsize=64)
        self._closed = Event()
        self._socket: socket.socket | None = None
        self._sent = False  # the request
        self._came = 0  # bytes since `allow`
        self._encoding = ""
        self._until = 0.0
        self.allow(endpoint.timeout)
        self._thread = Thread(target=self._run, args=(method, url, body), name="http", daemon=True)
        self._thread.start()

    def head(self) -> Head:
        """Raises EndpointError where no answer came, Cancelled."""
        item = self._next()
        assert isinstance(item, Head)  # it is always the first
        self._encoding = item.headers.get("content-encoding", "")
        return item

    def allow(self, seconds: float) -> None:
        """The server has done something of use: wait as long from now on for the rest."""
        self._until, self._came = time.monotonic() + seconds, 0

    def chunks(self) -> Iterator[bytes]:
        """Raises as `head` does."""
        for piece in decoded(self._body(), self._encoding):
            self._came += len(piece)
            self._check()  # a small body can have much in it
            yield piece

    def text(self, most: int = _REFUSAL_BYTES) -> str:
        """The body, or so many bytes of it: as far as a message can quote it."""
        data = bytearray()
        for chunk in self.chunks():
            data += chunk
            if len(data) > most:
                break
        return data[:most].decode("utf-8", errors="replace")

    def close(self) -> None:
        """Hang up at once, also in the middle of a wait: the server is to stop generating."""
        self._closed.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def _body(self) -> Iterator[bytes]:
        while isinstance(item := self._next(), bytes):
            yield item

    def _next(self) -> _Item:
        while True:
            self._check()
            try:
                item = self._items.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            if isinstance(item, Exception):
                raise transport_error(item, self._endpoint, sent=self._sent) from None
            return item

    def _check(self) -> None:
        if self._cancel.is_set():
            self.close()
            raise Cancelled
        if time.monotonic() > self._until or self._came > _FILLER_BYTES:
            self.close()
            raise (stalling if self._came else silent)(self._endpoint)

    def _run(self, method: str, url: str, body: Mapping[str, object] | None) -> None:
        try:
            with httpx2.Client(
                timeout=httpx2.Timeout(self._endpoint.timeout, connect=_CONNECT_SECONDS),
                trust_env=not self._endpoint.loopback,  # no proxy stands before this machine itself
                # SSL_CERT_FILE counts here as well; a context of certificates takes time to make
                verify=httpx2.create_ssl_context() if url.startswith("https:") else False,
            ) as client:
                request = client.build_request(
                    method,
                    url,
                    headers=_headers(self._endpoint.key),
                    content=None if body is None else json.dumps(body),
                    extensions={"trace": self._watch},
                )
                response = client.send(request, stream=True)
                self._put(Head(response.status_code, dict(response.headers)))
                for chunk in response.iter_raw():  # the client would unpack a small chunk to any size
                    self._put(chunk)
            self._put(None)
        except Exception as error:  # whatever it is, the thread that waits raises it
            self._put(error)

    def _watch(self, name: str, info: Mapping[str, Any]) -> None:
        """Keep the socket as soon as there is one; httpx2 cannot end another thread's wait."""
        self._sent = self._sent or name.endswith("send_request_headers.complete")
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._closed.is_set():
                self.close()

    def _put(self, item: _Item) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(Full):
                self._items.put(item, timeout=_POLL_SECONDS)
                return


def _headers(key: str | None) -> dict[str, str]:
    authorization = {"Authorization": f"Bearer {key}"} if key else {}
    return {
        "Content-Type": "application/json",
        "Accept": "text/event-stream, application/json",
        "Accept-Encoding": "identity",  # a compressor would hold back the deltas
        "User-Agent": "localgemma",
        **authorization,
    }
