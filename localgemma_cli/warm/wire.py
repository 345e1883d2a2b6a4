"""JSON lines over a Unix socket, which carry the program's own values: messages, sampling, events, errors."""

import json
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any

from localgemma_cli import constraint, conversation, errors, events, sampling
from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.warm import about

_LONGEST_LINE = 1 << 28  # bytes; a prompt of 64 MiB whose characters JSON escapes is shorter
_CHUNK = 1 << 16
_KIND = "$"  # the key that says what an object is
_CAUSE_LENGTH = 4000  # characters
_CLASSES = {
    name: value
    for module in (about, constraint, conversation, events, sampling)
    for name, value in vars(module).items()
    if isinstance(value, type) and is_dataclass(value)
}


class WireBroken(Exception):
    """The connection is closed, or the other side sends what this program does not understand."""


class WireClosed(WireBroken):
    """The other side has closed the connection."""


class Wire:
    """One end of a connection. One thread may receive while another one sends."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._received = connection, bytearray()

    def send(self, value: object) -> None:
        """Raises WireClosed."""
        try:
            self._socket.sendall(json.dumps(encode(value), separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            raise WireClosed("the connection is closed") from error

    def receive(self, seconds: float | None = None) -> Any:
        """The next value; None if there is none within `seconds`. Raises WireBroken."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            try:
                self._socket.settimeout(seconds)
                data = self._socket.recv(_CHUNK)
            except TimeoutError:
                return None
            except OSError as error:
                raise WireClosed("the connection is closed") from error
            if not data:
                raise WireClosed("the connection is closed")
            if searched > _LONGEST_LINE:
                raise WireBroken("the message is too long")
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            return decode(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise WireBroken("the other program does not speak this protocol") from error

    def close(self) -> None:
        """Also ends a `receive` in another thread."""
        with suppress(OSError):  # the other side has gone
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def encode(value: object) -> object:
    """Plain data for JSON; `decode` is the inverse, but for sequences, which all become tuples."""
    if isinstance(value, LocalGemmaError):
        cause = str(value.__cause__)[-_CAUSE_LENGTH:] if value.__cause__ else None
        return {_KIND: "error", "value": [type(value).__name__, value.message, value.hint, cause]}
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: encode(getattr(value, field.name)) for field in fields(value)}
        return {_KIND: type(value).__name__, **own}
    if isinstance(value, Mapping):
        return {_KIND: "map", "value": [[key, encode(each)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [encode(each) for each in value]
    return value


def decode(value: Any) -> Any:
    """Raises KeyError, TypeError or ValueError for what `encode` does not make."""
    if isinstance(value, list):
        return tuple(decode(each) for each in value)
    if not isinstance(value, dict):
        return value
    kind = value.pop(_KIND)
    if kind == "map":
        return {str(key): decode(each) for key, each in value["value"]}
    if kind == "error":
        return _error(*value["value"])
    return _CLASSES[kind](**{name: decode(each) for name, each in value.items()})


def _error(name: str, message: str, hint: str, cause: str | None) -> LocalGemmaError:
    """Of a class that only the sender has, the error that a user sees is the same."""
    found = getattr(errors, name, LocalGemmaError)
    kind = found if isinstance(found, type) and issubclass(found, LocalGemmaError) else LocalGemmaError
    error = kind(str(message), str(hint))
    error.__cause__ = RuntimeError(cause) if cause else None
    return error


def peer_of(connection: socket.socket) -> tuple[int, int] | None:
    """The process and the user at the other end; None where the system does not tell.

    Of a listening socket, they are those that began to listen.
    """
    if sys.platform != "linux":
        return None
    process, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return process, user
