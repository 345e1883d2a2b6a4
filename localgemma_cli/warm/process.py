"""The program of the process that keeps a model: its socket, its signals, its end."""

import os
import pickle
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from localgemma_cli.errors import as_user_error
from localgemma_cli.events import ProgressSink
from localgemma_cli.warm.server import KeepTask, KeptServer, is_memory_short

if TYPE_CHECKING:
    from localgemma_cli.backends.base import Backend

LISTENING = "listening\n"
_BACKLOG = 128


def main() -> None:
    """Read a `KeepTask` from standard input, write `listening` to standard output, and keep its model."""
    try:
        task: KeepTask = pickle.load(sys.stdin.buffer)
        server = KeptServer(listen(task.socket), task, partial(_load, task), is_memory_short)
    except Exception as error:  # the call that has started this process reports it
        _say(f"{as_user_error(error).message}\n")
        os._exit(1)
    signal.signal(signal.SIGTERM, lambda *_: _leave(server))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prefer_for_killing()
    _say(LISTENING)
    with open(os.devnull, "r+b") as nothing:  # nobody must wait for the end of this process's output
        for stream in (0, 1):
            os.dup2(nothing.fileno(), stream)
    server.serve()
    os._exit(0)


def _load(task: KeepTask, progress: ProgressSink) -> "Backend":
    """Load in the folder of the call, because paths may be relative; then leave it: it may be unmounted."""
    try:
        return task.engine.load_files(task.files, progress)
    finally:
        os.chdir("/")


def listen(path: Path) -> socket.socket:
    """Listen on a new socket that only this user can connect to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    return listener


def _say(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _leave(server: KeptServer) -> None:
    server.remove_socket()
    os._exit(0)


def _prefer_for_killing() -> None:
    """Where memory runs out, Linux ends this process before the user's other programs."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
