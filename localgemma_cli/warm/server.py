"""The server of a kept model: accepts connections, and ends when the model is not used or memory is short.

A connection sends requests, each a JSON object with the key `do`, and reads the replies:

    hello, keep                  {"engine": EngineAbout}, or {"outdated": true}
    load                         {"loaded": BackendAbout} once the model is loaded
    stream, messages, sampling   {"begun": true}, {"event": Event} for each; a request `cancel` stops it
    call, name, arguments        {"result": …} of one of METHODS
    status                       {"status": KeptStatus}
    stop                         {"stopping": true}; ends once no other connection is open

Meanwhile {"alive": LoadProgress or null} shows that the process works. {"error": LocalGemmaError} or
{"broken": text} is the end of a request that failed. What a request contains is never written to disk.
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event as Cancel
from threading import Lock, Thread
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

from localgemma_cli import __version__
from localgemma_cli.events import ProgressSink
from localgemma_cli.planning.host import host_memory
from localgemma_cli.warm.about import EngineAbout, KeptStatus
from localgemma_cli.warm.folder import lock_file
from localgemma_cli.warm.inputs import input_paths, read_stamps
from localgemma_cli.warm.model_thread import Job, ModelThread, Reply, about_backend
from localgemma_cli.warm.wire import Wire, WireBroken, peer_of

if TYPE_CHECKING:
    from localgemma_cli.backends.base import Backend
    from localgemma_cli.chat.engine import LocalEngine, ModelFiles

_TICK_SECONDS = 0.5
_ALIVE_SECONDS = 0.5
_CHECK_SECONDS = 5  # between two looks at memory and at the files
_LEAST_FREE = 1 / 20  # of the memory; with less available, an idle process ends


@dataclass(frozen=True)
class KeepTask:
    """What a new process gets: the model with its files, where to listen, and for how long."""

    engine: "LocalEngine"
    files: "ModelFiles"
    socket: Path
    keep_seconds: float


class KeptServer:
    """Serves each connection in threads of its own. `is_short`: whether memory is short."""

    def __init__(
        self,
        listener: socket.socket,
        task: KeepTask,
        load: "Callable[[ProgressSink], Backend]",
        is_short: Callable[[], bool],
    ) -> None:
        self._listener, self._task, self._is_short = listener, task, is_short
        self._inode = task.socket.stat().st_ino
        files = task.files
        self._paths = input_paths((files.folder, files.adapter, files.draft), task.engine.template)
        self._stamps = read_stamps(self._paths)  # before the files are read: later changes are seen
        self._model = ModelThread(load)
        self._lock = Lock()
        self._connections = 0
        self._keep, self._used = task.keep_seconds, time.monotonic()
        self._ending = False

    def serve(self) -> None:
        """Returns when the process is to end; its socket is gone by then."""
        self._model.start()
        checked = time.monotonic()
        while True:
            if self._accept(_TICK_SECONDS):
                continue
            if time.monotonic() - checked > _CHECK_SECONDS:
                checked = time.monotonic()
                useless = self._is_outdated() or not self._has_socket()
                self._ending |= self._is_idle() and (useless or self._is_short())
            if self._may_end() and self._close():
                return

    def _accept(self, seconds: float) -> bool:
        """Whether a connection came within `seconds`."""
        self._listener.settimeout(seconds)
        try:
            connection, _ = self._listener.accept()
        except (TimeoutError, BlockingIOError):
            return False
        with self._lock:
            self._connections += 1
        Thread(target=self._converse, args=(connection,), daemon=True).start()
        return True

    def _is_idle(self) -> bool:
        return self._connections == 0 and self._model.loaded.is_set()

    def _may_end(self) -> bool:
        """A load that nobody waits for is completed: the next call uses it."""
        if self._connections:
            return False
        unused = self._model.loaded.is_set() and self._seconds_left() <= 0
        return self._ending or self._model.failure is not None or unused

    def _seconds_left(self) -> float:
        return self._used + self._keep - time.monotonic()

    def _close(self) -> bool:
        """Remove the socket, unless a call is starting right now, which would find it."""
        from filelock import FileLock, Timeout

        path = self._task.socket
        if not self._has_socket():  # the lock would make the folder again, open to others
            return True
        try:
            with FileLock(lock_file(path.parent), timeout=0, mode=0o600):
                if self._accept(0):
                    return False
                self.remove_socket()
                return True
        except Timeout:
            return False
        except OSError:  # the folder is removed just now
            return True

    def _has_socket(self) -> bool:
        """Whether calls still find this process; its socket may be removed or replaced."""
        try:
            return self._task.socket.stat().st_ino == self._inode
        except OSError:
            return False

    def remove_socket(self) -> None:
        if self._has_socket():
            self._task.socket.unlink(missing_ok=True)

    def _is_outdated(self) -> bool:
        return read_stamps(self._paths) != self._stamps

    def _converse(self, connection: socket.socket) -> None:
        """One connection, until the other side closes it, which stops its answer."""
        wire, cancel, is_user = Wire(connection), Cancel(), False
        out: SimpleQueue[Reply | None] = SimpleQueue()
        try:
            peer = peer_of(connection)
            if peer is not None and peer[1] != os.getuid():
                return
            Thread(target=self._write, args=(wire, out), daemon=True).start()
            while True:
                request = wire.receive()
                if request["do"] == "cancel":
                    cancel.set()
                    continue
                is_user |= request["do"] == "hello"
                cancel = Cancel()
                self._handle(Job(request, cancel, out))
        except (WireBroken, KeyError, TypeError, ValueError):  # it has closed, or speaks otherwise
            pass
        finally:
            cancel.set()
            out.put(None)
            wire.close()
            with self._lock:
                self._connections -= 1
                if is_user:
                    self._used = time.monotonic()

    def _handle(self, job: Job) -> None:
        match job.request["do"]:
            case "hello":
                job.out.put(self._greet(float(job.request["keep"])))
            case "load":
                self._model.loaded.wait()
                backend, failure = self._model.backend, self._model.failure
                job.out.put({"loaded": about_backend(backend)} if backend else failure)
            case "status":
                job.out.put({"status": self._status()})
            case "stop":
                self._ending = True
                job.out.put({"stopping": True})
            case "stream" | "call":
                self._model.jobs.put(job)
            case _:
                raise WireBroken("unknown request")

    def _greet(self, keep: float) -> Reply:
        if self._ending or self._is_outdated():
            self._ending = True
            return {"outdated": True}
        self._keep = keep
        return {"engine": about_engine(self._task.engine)}

    def _status(self) -> KeptStatus:
        plan = self._task.engine.plan
        is_used = self._connections > 1  # besides the one that asks
        state = "in use" if is_used else "idle" if self._model.loaded.is_set() else "loading"
        return KeptStatus(
            model=plan.model.name,
            preset=plan.preset,
            device=plan.device,
            quantization=plan.quantization,
            dtype=plan.dtype,
            context_length=plan.context_length,
            state=state,
            pid=os.getpid(),
            memory_bytes=own_memory(),
            idle_seconds_left=max(0.0, self._seconds_left()) if state == "idle" else None,
            version=__version__,
        )

    def _write(self, wire: Wire, out: "SimpleQueue[Reply | None]") -> None:
        """Send what comes, and a sign of life when nothing does."""
        with suppress(WireBroken):
            while True:
                try:
                    reply = out.get(timeout=_ALIVE_SECONDS)
                except Empty:
                    reply = {"alive": self._model.progress}
                if reply is None:
                    return
                wire.send(reply)
        wire.close()  # the other side has gone: its request stops


def about_engine(engine: "LocalEngine") -> EngineAbout:
    return EngineAbout(
        engine.model,
        engine.label,
        engine.introduction,
        engine.warnings,
        engine.reasons,
        vars(engine.run(0.0)),
    )


def own_memory() -> int:
    """Bytes of this process and of those it has started."""
    process, total = psutil.Process(), 0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended
            total += int(each.memory_info().rss)
    return total


def is_memory_short() -> bool:
    """Whether other programs may need what an idle process keeps."""
    memory = host_memory()
    return memory.free < memory.total * _LEAST_FREE
