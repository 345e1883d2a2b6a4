"""Read standard input, and decide whether it belongs to a prompt of words or to another program."""

import os
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from select import select
from typing import TextIO

from localgemma_cli.errors import UsageError
from localgemma_cli.text import TEXT_LIMIT, decode_text
from localgemma_cli.units import format_bytes

AT_ONCE = 1.0  # seconds in which a program that started this one can begin to write
_QUIET_FOR = 10.0  # seconds after which a person learns what is waited for
_PIECE = 1 << 16  # bytes
_PROCESSES = Path("/proc")


def read_stdin(stdin: TextIO) -> str:
    """All of standard input; raises UsageError if it is too large, not text, or not readable."""
    try:
        data = _read_bytes(stdin.fileno(), TEXT_LIMIT + 1)
    except OSError as error:
        raise UsageError(
            f"Standard input cannot be read: {error.strerror}.",
            "Redirect it from a file or a pipe, or add -n.",
        ) from None
    if len(data) > TEXT_LIMIT:
        raise UsageError(
            f"Standard input exceeds {format_bytes(TEXT_LIMIT)}.",
            "Send less text; no Gemma model has a context that large.",
        )
    return decode_text(data, "Standard input")


def read_stdin_beside_words(stdin: TextIO, note: Callable[[str], None]) -> str:
    """What is attached to a prompt of words: all of standard input, or "" where it is not for this program.

    A file that another program has begun to read is that program's, such as the list of a `while read`
    loop. A pipe from another command is read to its end, however late it begins. A pipe or socket that
    the calling program holds open must begin within a second: many programs leave it open and never write.
    """
    descriptor = stdin.fileno()
    if stdin.isatty() or not _is_readable(descriptor):
        return ""
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        if 0 < os.lseek(descriptor, 0, os.SEEK_CUR) < status.st_size:
            note("Standard input is not attached: another program reads it. -n omits this note.")
            return ""
    elif not _begins(descriptor, status, note):
        note("Standard input is not attached: it sent nothing. -n omits the wait; -f - waits for its end.")
        return ""
    return read_stdin(stdin)


def _begins(descriptor: int, status: os.stat_result, note: Callable[[str], None]) -> bool:
    """Whether something arrives, or standard input ends; waits for another command of a pipeline."""
    if sys.platform == "win32" or _is_ready(descriptor, 0):  # select supports only sockets on Windows
        return True
    if not (stat.S_ISFIFO(status.st_mode) and is_from_a_command(descriptor)):
        return _is_ready(descriptor, AT_ONCE)
    if not _is_ready(descriptor, _QUIET_FOR):
        note("Waiting for standard input. -n omits the wait.")
    return True


def _is_readable(descriptor: int) -> bool:
    """False for a descriptor that was opened for writing: `nohup` replaces a terminal by one."""
    try:
        os.read(descriptor, 0)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def _is_ready(descriptor: int, seconds: float) -> bool:
    return bool(select([descriptor], [], [], seconds)[0])


def _read_bytes(descriptor: int, limit: int) -> bytes:
    """Up to `limit` bytes or the end, also from a descriptor that another program has set to non-blocking."""
    pieces: list[bytes] = []
    while limit > 0:
        try:
            piece = os.read(descriptor, min(limit, _PIECE))
        except BlockingIOError:
            select([descriptor], [], [])
            continue
        if not piece:
            break
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def is_from_a_command(descriptor: int) -> bool:
    """Whether a pipe is the output of another command, as in `command | localgemma`.

    A program that starts this one with a pipe holds its other end as another descriptor than stdout and
    stderr. True for a named pipe, and on systems without /proc, where that is unknown.
    """
    try:
        pipe = os.readlink(_PROCESSES / "self" / "fd" / str(descriptor))
    except OSError:
        return True
    if not pipe.startswith("pipe:"):  # a named one, which somebody chose
        return True
    callers = set(_callers())
    pids = (int(each) for each in os.listdir(_PROCESSES) if each.isdecimal())
    return any(_writes_to(pid, pipe, is_caller=pid in callers) for pid in pids if pid != os.getpid())


def _writes_to(pid: int, pipe: str, *, is_caller: bool) -> bool:
    """Whether a process has the pipe as its stdout or stderr; probably, if it is hidden in this pipeline."""
    with suppress(OSError):
        for output in ("1", "2"):
            try:
                if os.readlink(_PROCESSES / str(pid) / "fd" / output) == pipe:
                    return True
            except PermissionError:  # a command of another user, such as `sudo`
                return not is_caller and os.getpgid(pid) == os.getpgrp()
    return False


def _callers() -> Iterable[int]:
    """The processes that started this one, the nearest first."""
    pid = os.getppid()
    while pid > 1:
        yield pid
        try:
            about = (_PROCESSES / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        pid = int(about.rpartition(")")[2].split()[1])
