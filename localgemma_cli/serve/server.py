"""Run the application on its sockets until a signal ends it."""

import asyncio
import signal
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn

from localgemma_cli.serve.answer_queue import AnswerQueue
from localgemma_cli.serve.application import Application

_ENDS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
]
_IDLE_SECONDS = 75  # that a connection is kept: longer than clients keep theirs, so that they close it
_STOP_SECONDS = 5  # for answers to end, once they are stopped


def serve_until_signal(
    application: Application, queue: AnswerQueue, sockets: Sequence[socket.socket], ready: Callable[[], None]
) -> int:
    """Serve, calling `ready` once clients can connect; returns the signal that ended it."""
    config = uvicorn.Config(
        application,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    server = _Server(config, queue, ready)
    asyncio.run(server.serve(list(sockets)))
    return server.ended_by


class _Server(uvicorn.Server):
    """Stops its answers first when it ends, and leaves what a signal means to the caller."""

    def __init__(self, config: uvicorn.Config, queue: AnswerQueue, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._queue, self._ready = queue, ready
        self.ended_by = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._queue.stop()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """A signal that is ignored, as `nohup` has it, stays ignored."""
        heard = [each for each in _ENDS if signal.getsignal(each) is not signal.SIG_IGN]
        before = {each: signal.signal(each, self.handle_exit) for each in heard}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The second signal ends it without waiting for clients."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.ended_by = self.ended_by or sig
