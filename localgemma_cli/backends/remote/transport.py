"""One HTTP exchange in a thread of its own, so that whoever waits for it can give up at any moment."""

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import httpx2

from localgemma_cli.backends.remote.endpoint import Endpoint
from localgemma_cli.backends.remote.failures import transport_error

_CONNECT_SECONDS = 10.0
_POLL_SECONDS = 0.05
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
    """A request on its way: `head`, then `chunks` of the body as they come; `close` at any time."""

    def __init__(
        self, endpoint: Endpoint, method: str, url: str, body: Mapping[str, object] | None, cancel: Event
    ) -> None:
        self._endpoint, self._cancel = endpoint, cancel
        self._items: Queue[_Item] = Queue(maxsize=64)
        self._closed = Event()
        self._socket: socket.socket | None = None
        self._thread = Thread(target=self._run, args=(method, url, body), name="http", daemon=True)
        self._thread.start()

    def head(self) -> Head:
        """Raises EndpointError where no answer came, Cancelled."""
        item = self._next()
        assert isinstance(item, Head)  # it is always the first
        return item

    def chunks(self) -> Iterator[bytes]:
        """Raises as `head` does."""
        while isinstance(item := self._next(), bytes):
            yield item

    def text(self) -> str:
        """The body, as far as a message can quote it."""
        data = b""
        for chunk in self.chunks():
            data += chunk
            if len(data) > _REFUSAL_BYTES:
                break
        return data[:_REFUSAL_BYTES].decode("utf-8", errors="replace")

    def close(self) -> None:
        """Hang up at once, also in the middle of a wait: the server is to stop generating."""
        self._closed.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def _next(self) -> _Item:
        while True:
            if self._cancel.is_set():
                self.close()
                raise Cancelled
            try:
                item = self._items.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            if isinstance(item, Exception):
                raise transport_error(item, self._endpoint) from item
            return item

    def _run(self, method: str, url: str, body: Mapping[str, object] | None) -> None:
        try:
            with httpx2.Client(
                timeout=httpx2.Timeout(self._endpoint.timeout, connect=_CONNECT_SECONDS),
                trust_env=not self._endpoint.loopback,  # no proxy stands before this machine itself
                verify=url.startswith("https:"),  # a context of certificates takes time to make
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
                for chunk in response.iter_bytes():
                    self._put(chunk)
            self._put(None)
        except Exception as error:  # whatever it is, the thread that waits raises it
            self._put(error)

    def _watch(self, name: str, info: Mapping[str, Any]) -> None:
        """Keep the socket as soon as there is one; httpx2 cannot end another thread's wait."""
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
