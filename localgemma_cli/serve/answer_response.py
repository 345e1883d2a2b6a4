"""One answer as an HTTP response, streamed or whole; a client that disconnects stops it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from localgemma_cli.events import Delta, Event, Finished, Reading, Thinking
from localgemma_cli.serve.answer_queue import AnswerQueue
from localgemma_cli.serve.api_error import ApiError, stopping
from localgemma_cli.serve.chat_request import Asked
from localgemma_cli.serve.reply import Reply

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold back the stream
]
_DONE = b"data: [DONE]\n\n"


class AnswerResponse:
    """Queues a request when it is sent, and sends its answer; an ASGI application.

    `as_api_error` makes what a client is sent of an error.
    """

    def __init__(
        self, queue: AnswerQueue, asked: Asked, reply: Reply, as_api_error: Callable[[Exception], ApiError]
    ) -> None:
        self._queue, self._asked, self._reply, self._as_api_error = queue, asked, reply, as_api_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Event | BaseException | None]()

        def deliver(event: Event | BaseException) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has stopped without waiting
                loop.call_soon_threadsafe(arrived.put_nowait, event)

        ticket = self._queue.submit(self._asked, deliver)
        gone = asyncio.create_task(_wait_for_disconnect(receive))
        gone.add_done_callback(lambda _: arrived.put_nowait(None))
        try:
            events = _events(arrived)
            await (self._send_stream if self._asked.stream else self._send_whole)(
                events, scope, receive, send
            )
        finally:
            self._queue.cancel(ticket)
            gone.cancel()

    async def _send_whole(
        self, events: AsyncIterator[Event], scope: Scope, receive: Receive, send: Send
    ) -> None:
        text, thoughts = list[str](), list[str]()
        async for event in events:
            match event:
                case Delta(piece):
                    text.append(piece)
                case Thinking(piece):
                    thoughts.append(piece)
                case Finished():
                    self._raise_failure(event)
                    whole = self._reply.whole("".join(text), "".join(thoughts), event)
                    await JSONResponse(whole)(scope, receive, send)

    async def _send_stream(
        self, events: AsyncIterator[Event], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send the head once an answer is certain: until then an error has its own status."""
        started = False

        async def put(data: bytes, more: bool = True) -> None:
            nonlocal started
            if not started:
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async for event in events:
                if not started and (opening := self._reply.opening()):
                    await put(_line(opening))
                if isinstance(event, Finished):
                    self._raise_failure(event)
                if data := self._data_of(event):
                    await put(data, not isinstance(event, Finished))
        except Exception as error:
            if not started:
                raise
            await put(_line(self._as_api_error(error).to_object()) + _DONE, more=False)

    def _data_of(self, event: Event) -> bytes:
        match event:
            case Delta(piece):
                return _line(self._reply.piece(piece))
            case Thinking(piece):
                return _line(self._reply.thought(piece))
            case Reading():
                return b""
        usage = _line(self._reply.usage(event.usage)) if self._reply.include_usage else b""
        return _line(self._reply.ending(event)) + usage + _DONE

    def _raise_failure(self, finished: Finished) -> None:
        if finished.error is not None:
            raise finished.error
        if finished.finish_reason == "interrupted":  # not by the client, which would not be here any more
            raise stopping()


async def _events(arrived: "asyncio.Queue[Event | BaseException | None]") -> AsyncIterator[Event]:
    """The events up to the last one, or until the client has gone. Raises the errors among them."""
    while (event := await arrived.get()) is not None:
        if isinstance(event, BaseException):
            raise event
        yield event
        if isinstance(event, Finished):
            return


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _line(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
