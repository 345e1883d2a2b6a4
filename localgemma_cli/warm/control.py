"""Ask the processes that keep models what they are doing, and end them."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localgemma_cli.warm.about import KeptStatus
from localgemma_cli.warm.client import KeptEnded, connect, receive
from localgemma_cli.warm.folder import KeptUnusable, kept_folder, kept_sockets, require_private
from localgemma_cli.warm.wire import Wire, WireBroken, peer_of

_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class KeptProcess:
    """One process by its socket; `status` is None if it does not answer, `pid` if that is unknown too."""

    socket: Path
    pid: int | None
    status: KeptStatus | None


def list_kept(folder: Path) -> list[KeptProcess]:
    """The processes that listen in the folder. KeptUnusable for a folder that others can write."""
    if not folder.exists():
        return []
    require_private(folder)
    return list(_processes(folder))


def _processes(folder: Path) -> Iterator[KeptProcess]:
    for path in kept_sockets(folder):
        try:
            connection = connect(path)
        except KeptUnusable:
            continue
        if connection is None:  # the rest of a process that was killed
            continue
        peer = peer_of(connection)
        reply = _ask(Wire(connection), {"do": "status"}, "status")
        status = reply if isinstance(reply, KeptStatus) else None
        pid = peer[0] if peer else status.pid if status else None
        yield KeptProcess(path, pid, status)


def kept_bytes() -> int:
    """The memory that all kept models of this user use."""
    with suppress(KeptUnusable):
        return sum(each.status.memory_bytes for each in list_kept(kept_folder()) if each.status)
    return 0


def stop_kept(process: KeptProcess) -> bool:
    """End the process, once its answers are complete; at once if it hangs. False while it is in use."""
    try:
        connection = connect(process.socket)
    except KeptUnusable:
        return True
    if connection is None:
        return True
    if _ask(Wire(connection), {"do": "stop"}, "stopping") is None and process.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.socket.unlink(missing_ok=True)
    deadline = time.monotonic() + _ANSWER_SECONDS
    while process.socket.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _ask(wire: Wire, request: Mapping[str, object], key: str) -> Any:
    """The value of `key` in the reply; None if the process does not answer."""
    try:
        wire.send(request)
        deadline = time.monotonic() + _ANSWER_SECONDS
        while key not in (reply := receive(wire, _ANSWER_SECONDS)):
            if time.monotonic() > deadline:
                return None
        return reply[key]
    except (KeptEnded, WireBroken):
        return None
    finally:
        wire.close()
