"""Starts of the program from a process that has imported PyTorch and transformers already.

Importing them takes most of the processor's time in a short run of the program, and is the same each time.
A helper imports them once and forks; the child runs `python -m localgemma_cli`, of which nothing is imported
yet. Tests of the start itself start the program as a user does. So do all tests where LOCALGEMMA_TEST_COLD is
set, and on other systems than Linux.
"""

import ctypes
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HELPER = Path(__file__).with_name("warm_helper.py")
IS_AVAILABLE = sys.platform == "linux" and not os.environ.get("LOCALGEMMA_TEST_COLD")
_READ_LATE = ("TERM", "COLUMNS", "NO_COLOR", "EDITOR", "VISUAL", "TMPDIR")
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


def can_start_warm(words: Sequence[str], environment: Collection[str]) -> bool:
    """Whether these words ask a named model for answers, or serve it; other commands need no PyTorch.

    A library may read other variables than these when it is imported.
    """
    first = words[0] if words else ""
    asks = first.startswith(("-", "serve", "batch", "score")) and "-m" in words and IS_AVAILABLE
    return asks and all(name in _READ_LATE or name.startswith("HF_") for name in environment)


@functools.cache
def _helper() -> socket.socket:
    """The connection to the helper, which ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, "-BP", HELPER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},  # as the program has it
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    return ours


def start(
    words: Sequence[str], streams: Sequence[int], *, cwd: Path, env: Mapping[str, str], terminal: bool = False
) -> int:
    """The process id of `localgemma WORDS`, a child of this process.

    `streams` become its standard streams; with `terminal`, the first is its controlling terminal.
    """
    request = {"words": list(words), "cwd": str(cwd), "env": dict(env), "terminal": terminal}
    libc = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)  # the child's own parent ends at once
    try:
        socket.send_fds(_helper(), [json.dumps(request).encode()], streams)
        return int(_helper().recv(100))
    finally:
        libc.prctl(_SUBREAPER, 0, 0, 0, 0)


def run(words: Sequence[str], stdin: bytes, *, cwd: Path, env: Mapping[str, str]) -> tuple[int, bytes, bytes]:
    """The exit code, standard output and standard error of `localgemma WORDS` once it has ended."""
    (printing, printed), (telling, told) = os.pipe(), os.pipe()
    with tempfile.TemporaryFile() as given:  # written before the program starts, which waits only a second
        given.write(stdin)
        given.seek(0)
        pid = start(words, (given.fileno(), printed, told), cwd=cwd, env=env)
    for descriptor in (printed, told):
        os.close(descriptor)
    with ThreadPoolExecutor(2) as threads:
        out, errors = threads.map(_read_all, (printing, telling))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out, errors


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as pipe:
        return pipe.read()
