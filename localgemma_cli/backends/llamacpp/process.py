"""The process in which llama.cpp runs, seen from this one: loading, requests, and how it can end."""

import json
import re
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from signal import Signals
from threading import Thread
from typing import IO, Any

from localgemma_cli.documents import failure_reason
from localgemma_cli.errors import LocalGemmaError, NotFoundError
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.optional_dependencies import require_package

Reply = Any  # one of the JSON values that worker.py describes
_WORKER = Path(__file__).with_name("worker.py")
_LOOK_SECONDS = 0.1
_LOG_BYTES = 4000  # of the end of what llama.cpp wrote
_REASON = re.compile(r"error loading model: (.+)")
_RENEW = "Download the file again, or update llama.cpp: pip install -U xllamacpp"
_REASON_LENGTH = 200  # characters


class LlamaProcess:
    """llama.cpp with one file, which begins to load at once; `load` waits for it.

    NotFoundError where xllamacpp is missing. `close` ends the process; so does dropping the object.
    """

    def __init__(self, parameters: Mapping[str, object]) -> None:
        _require_xllamacpp()
        self.path = str(parameters["model.path"])
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with this object
        self._process = _start(self._log)
        self.close = weakref.finalize(self, _end, self._process)
        self._replies = SimpleQueue[Reply]()
        Thread(target=_read, args=(self._process.stdout, self._replies), daemon=True).start()
        self.send(parameters)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def load(self, progress: ProgressSink) -> None:
        """Wait until the file is loaded. NotFoundError where llama.cpp refuses it, or crashes."""
        try:
            reply = None
            while reply is None:
                progress(LoadProgress("loading the model into llama.cpp"))
                reply = self.reply(_LOOK_SECONDS)
            if "ready" not in reply:
                raise self._load_error(reply)
        except LlamaEnded as error:
            raise NotFoundError(
                f"llama.cpp crashed ({error}) while it loaded {self.path}.", _RENEW
            ) from error.__cause__
        except BaseException:  # refused, or stopped by the user
            self.close()
            raise

    def send(self, request: Mapping[str, object]) -> None:
        assert self._process.stdin  # a pipe
        with suppress(OSError):  # it has ended, which `reply` reports
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def reply(self, seconds: float) -> Reply | None:
        """The next line of the process; None if there is none within `seconds`.

        LlamaEnded where the process has ended.
        """
        try:
            line = self._replies.get(timeout=seconds)
        except Empty:
            return None
        if line is None:
            self._replies.put(None)
            raise LlamaEnded(_how(self._process.wait())) from RuntimeError(self._written())
        return line

    def _load_error(self, reply: Reply) -> LocalGemmaError:
        written = self._written()
        if "missing" in reply:
            error: LocalGemmaError = NotFoundError(
                f"The package xllamacpp cannot be imported: {reply['error']}.",
                "Install it again: pip install --force-reinstall xllamacpp",
            )
        else:
            found = _REASON.search(written)
            why = (found[1] if found else str(reply["error"])).strip().rstrip(".")[:_REASON_LENGTH]
            error = NotFoundError(f"llama.cpp cannot load {self.path}: {why}.", _RENEW)
        error.__cause__ = RuntimeError(written)  # -v shows it
        return error

    def _written(self) -> str:
        """The end of what llama.cpp wrote to its standard error."""
        with suppress(OSError):
            size = self._log.seek(0, 2)
            self._log.seek(max(0, size - _LOG_BYTES))
            return self._log.read().decode("utf-8", "replace")
        return ""


class LlamaEnded(Exception):
    """The process has ended by itself, or was killed; its argument is how, such as `SIGABRT`."""


def _require_xllamacpp() -> None:
    with require_package("xllamacpp", "gguf", "GGUF files"):
        if find_spec("xllamacpp") is None:
            raise ImportError(name="xllamacpp")


def _start(log: IO[bytes]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,  # Ctrl-C in the terminal must not reach it
        )
    except OSError as error:
        raise LocalGemmaError(
            f"Cannot start a process for llama.cpp: {failure_reason(error)}.", "Close other programs."
        ) from error


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def _read(lines: IO[bytes], replies: "SimpleQueue[Reply]") -> None:
    """Runs in a thread; ends with None."""
    with suppress(ValueError, OSError):  # an incomplete line of a process that was killed
        for line in lines:
            replies.put(json.loads(line))
    replies.put(None)


def _how(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return Signals(-code).name
    return f"exit code {code}"
