"""Start the process that keeps a model, once for all calls that want it at the same time."""

import os
import pickle
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from localgemma_cli.documents import failure_reason
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.warm.client import KeptConnection, connect, describe_loss, find_kept, load_kept
from localgemma_cli.warm.folder import KeptUnusable, lock_file, make_kept_folder, socket_path
from localgemma_cli.warm.key import PACKAGE

if TYPE_CHECKING:
    from localgemma_cli.backends.base import Backend
    from localgemma_cli.chat.engine import LocalEngine, ModelFiles

_START_SECONDS = 120  # for Python to start on a busy machine; also for another call that starts one
_LOOK_SECONDS = 0.1
_STAGE = LoadProgress("starting the process that keeps the model")
_SECRET = re.compile(r"(.*_)?(TOKEN|KEY|SECRET|PASSWORD)", re.IGNORECASE)
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from localgemma_cli.warm.process import main; main()"


@dataclass(frozen=True)
class KeepRequest:
    """A call's wish to keep its model for `seconds` after its last use; `say` shows what fails."""

    folder: Path
    key: str
    seconds: float
    say: Callable[[str], None]

    def load(self, engine: "LocalEngine", files: "ModelFiles", progress: ProgressSink) -> "Backend":
        """Start the process and load the model there; here, if that does not work."""
        alone = replace(engine, keep=None)
        # llama.cpp may be started again later, when the process has left the folder of this call
        files = replace(files, folder=files.folder.absolute())

        def cold(report: ProgressSink) -> "Backend":
            return alone.load_files(files, report)

        try:
            connection = self._start(alone, files, progress)
        except (KeptUnusable, OSError) as error:
            why = error if isinstance(error, KeptUnusable) else f"cannot be started: {failure_reason(error)}"
            self.say(describe_loss(why))
            return cold(progress)
        return load_kept(connection.wire, cold, self.say, progress)

    def _start(self, engine: "LocalEngine", files: "ModelFiles", progress: ProgressSink) -> KeptConnection:
        make_kept_folder(self.folder)
        with _locked(self.folder, progress):
            running = find_kept(self.folder, self.key, self.seconds)
            if running is None:
                path = socket_path(self.folder, self.key)
                self._make_room(path)
                _start_process(engine, files, path, self.seconds, progress)
                running = find_kept(self.folder, self.key, self.seconds)
        if running is None:
            raise KeptUnusable("has ended")
        return running

    def _make_room(self, path: Path) -> None:
        """Remove the socket of a process that was killed, or that ends because its files have changed."""
        if not path.exists():
            return
        still_listens = connect(path)
        path.unlink(missing_ok=True)
        if still_listens is not None:
            still_listens.close()
        else:
            self.say(describe_loss("has ended unexpectedly", "The model is loaded again."))


@contextmanager
def _locked(folder: Path, progress: ProgressSink) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file(folder), mode=0o600)
    deadline = time.monotonic() + _START_SECONDS
    while not lock.is_locked:
        progress(_STAGE)
        try:
            lock.acquire(timeout=_LOOK_SECONDS)
        except Timeout:
            if time.monotonic() > deadline:
                raise KeptUnusable("is being started by a call that hangs") from None
        except OSError as error:
            raise KeptUnusable(f"cannot be started: {failure_reason(error)}") from error
    try:
        yield
    finally:
        lock.release()


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a process which only reads files gets: no tokens and keys, which it would keep."""
    return {name: value for name, value in environ.items() if not _SECRET.fullmatch(name)}


def _start_process(
    engine: "LocalEngine", files: "ModelFiles", path: Path, seconds: float, progress: ProgressSink
) -> None:
    """Start the process and wait until it listens on `path`. Raises KeptUnusable."""
    from localgemma_cli.warm.process import LISTENING
    from localgemma_cli.warm.server import KeepTask

    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, str(PACKAGE.parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=without_secrets(os.environ),
            start_new_session=True,  # neither Ctrl-C nor the end of the terminal reaches it
        )
    except OSError as error:
        raise KeptUnusable(f"cannot be started: {failure_reason(error)}") from error
    assert process.stdin
    assert process.stdout
    with process.stdin as stdin, process.stdout as stdout:
        try:
            stdin.write(pickle.dumps(KeepTask(engine, files, path, seconds)))
            stdin.close()
            deadline = time.monotonic() + _START_SECONDS
            while not select.select([stdout], [], [], _LOOK_SECONDS)[0]:
                progress(_STAGE)
                if time.monotonic() > deadline:
                    raise KeptUnusable("does not start")
            line = stdout.readline()
        except OSError as error:
            line = failure_reason(error).encode()
        except BaseException:
            process.kill()
            raise
    if line != LISTENING.encode():
        reason = line.decode("utf-8", "replace").strip() or "it ended"
        raise KeptUnusable(f"cannot be started: {reason}")
    process.returncode = 0  # it stays when this one ends
