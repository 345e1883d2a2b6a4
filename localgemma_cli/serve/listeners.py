"""The sockets on which the server listens: an address, and a Unix socket for this user only."""

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from localgemma_cli.documents import failure_reason
from localgemma_cli.environment import is_ours, make_private, runtime_folder
from localgemma_cli.errors import LocalGemmaError, UsageError

HAS_UNIX_SOCKETS = sys.platform != "win32" and hasattr(socket, "AF_UNIX")


@dataclass(frozen=True)
class Address:
    """A bound socket that does not listen yet: until it does, clients are refused."""

    socket: socket.socket
    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return ip_address(self.host.partition("%")[0]).is_loopback

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def bind_address(host: str, port: int) -> Address:
    """Bind to `host`; port 0 means any free one. UsageError for a bad host, else LocalGemmaError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError):
        raise UsageError(f"--host is not an address of this machine: {host!r}.", "Use 127.0.0.1.") from None
    family, kind, _, _, where = min(found, key=lambda each: each[0] != socket.AF_INET)
    bound = socket.socket(family, kind)
    try:
        if sys.platform != "win32":  # where it would allow two programs on one port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except OSError as error:
        bound.close()
        raise LocalGemmaError(
            f"Cannot listen on {host}, port {port}: {failure_reason(error)}.",
            "Choose another port with --port, or stop the program that uses it.",
        ) from None
    own = bound.getsockname()
    return Address(bound, own[0], own[1])


def default_socket(port: int) -> Path:
    """The Unix socket of the server on `port`."""
    return runtime_folder() / f"serve-{port}.sock"


def bind_unix(path: Path, *, own_folder: bool) -> socket.socket:
    """Bind a socket that only this user can use. What a server that was killed left at `path` is replaced.

    `own_folder`: its folder belongs to this program, and is created. Raises OSError, and LocalGemmaError
    where another program listens there or other users can change the folder.
    """
    if own_folder:
        make_private(path.parent)
    if not is_ours(path.parent.stat()):
        raise LocalGemmaError(f"Other users can change the folder {path.parent}.", "Choose another --socket.")
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(os.fspath(path))
        path.chmod(0o600)  # before it listens
    except BaseException:
        bound.close()
        raise
    return bound


def _remove_stale(path: Path) -> None:
    if not path.is_socket():  # a file is not removed: `bind` fails
        return
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe,
        suppress(ConnectionRefusedError, FileNotFoundError),
    ):
        probe.connect(os.fspath(path))
        raise LocalGemmaError(f"Another server listens on {path}.", "Stop it, or choose another --socket.")
    path.unlink(missing_ok=True)
