"""One HTTP exchange in its own thread, so that the caller can stop waiting at any moment."""

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
from localgemma_cli.backends.http.server_errors import no_answer_error, no_data_error, transport_error
from localgemma_cli.backends.http.sse import decompress

_CONNECT_SECONDS = 10.0
_POLL_SECONDS = 0.05
_LONGEST_POLL_SECONDS = (
    1.0  # whatever is beyond it, this program was stopped or blocked, and the server was not
)
_FILLER_BYTES = 8 * 2**20  # the most that may arrive without any text of an answer
_REFUSAL_BYTES = 64 * 2**10  # the most that is read of a response that is only quoted


class ExchangeCancelled(Exception):
    """The user stopped the exchange."""


@dataclass(frozen=True)
class ResponseHead:
    status: int
    headers: Mapping[str, str]

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


_Item = ResponseHead | bytes | Exception | None  # None ends the body


class Exchange:
    """A request and its response: `head`, then the `chunks` of the body as they arrive; `close` at any time.

    The endpoint's timeout and a limit in bytes apply to the whole response and restart with each `allow`:
    data that only keeps the connection busy does not extend the wait. The time in which this program is
    stopped (Ctrl-Z), or its reader blocks it (a pager), does not count.
    """

    def __init__(
        self, endpoint: Endpoint, method: str, url: str, body: Mapping[str, object] | None, cancel: Event
    ) -> None:
        self._endpoint, self._cancel = endpoint, cancel
        self._items: Queue[_Item] = Queue(maxsize=64)
        self._closed = Event()
        self._socket: socket.socket | None = None
        self._sent = False  # whether the whole request has been sent
        self._received = 0  # bytes since the last `allow`
        self._encoding = ""
        self._left = self._looked = 0.0  # seconds of the timeout that are left, and when that was
        self.allow(endpoint.timeout)
        self._thread = Thread(target=self._run, args=(method, url, body), name="http", daemon=True)
        self._thread.start()

    def head(self) -> ResponseHead:
        """Wait for the status and headers. Raises EndpointError without a response, and ExchangeCancelled."""
        item = self._next()
        assert isinstance(item, ResponseHead)  # always the first item
        self._encoding = item.headers.get("content-encoding", "")
        return item

    def allow(self, seconds: float) -> None:
        """Restart the timeout, because the server has made progress."""
        self._left, self._looked, self._received = seconds, time.monotonic(), 0

    def chunks(self) -> Iterator[bytes]:
        """Yield the decompressed body. Raises as `head` does."""
        for piece in decompress(self._body(), self._encoding):
            self._received += len(piece)
            self._check()  # a small body can decompress to any size
            yield piece

    def text(self, most: int = _REFUSAL_BYTES) -> str:
        """The body, cut to `most` bytes: enough to quote from."""
        data = bytearray()
        for chunk in self.chunks():
            data += chunk
            if len(data) > most:
                break
        return data[:most].decode("utf-8", errors="replace")

    def close(self) -> None:
        """Disconnect at once, also during a wait, so that the server stops generating."""
        self._closed.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # already closed
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
            raise ExchangeCancelled
        now = time.monotonic()
        self._left -= min(now - self._looked, _LONGEST_POLL_SECONDS)
        self._looked = now
        if self._left < 0 or self._received > _FILLER_BYTES:
            self.close()
            raise (no_answer_error if self._received else no_data_error)(self._endpoint)

    def _run(self, method: str, url: str, body: Mapping[str, object] | None) -> None:
        try:
            with httpx2.Client(
                timeout=httpx2.Timeout(self._endpoint.timeout, connect=_CONNECT_SECONDS),
                trust_env=not self._endpoint.loopback,  # no proxy for this machine itself
                # with SSL_CERT_FILE; loading the certificates takes time, so only for https
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
                self._put(ResponseHead(response.status_code, dict(response.headers)))
                for chunk in response.iter_raw():  # iter_bytes would decompress a small chunk to any size
                    self._put(chunk)
            self._put(None)
        except Exception as error:  # `_next` raises it in the caller's thread
            self._put(error)

    def _watch(self, name: str, info: Mapping[str, Any]) -> None:
        """Keep the socket once it is open: httpx2 cannot interrupt another thread's wait, closing it can."""
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
        "Accept-Encoding": "identity",  # compression would delay the deltas
        "User-Agent": "localgemma",
        **authorization,
    }
