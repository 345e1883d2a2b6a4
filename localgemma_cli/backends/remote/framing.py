"""Bytes as they come from a socket, cut into what a server meant: lines, events, JSON objects."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from localgemma_cli.backends.remote.dialect import ServerError
from localgemma_cli.backends.remote.failures import cut_off
from localgemma_cli.errors import EndpointError

_LONGEST_LINE = 8 * 2**20  # bytes


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines without their ends; PassingError where the last one was cut off in its middle."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield _text(line)
        if len(rest) > _LONGEST_LINE:
            raise EndpointError(
                f"The server sent a line of more than {_LONGEST_LINE >> 20} MiB.", "Look at the server's log."
            )
    if rest.rstrip().endswith((b"}", b"]")):
        yield _text(rest)
    elif rest.strip():
        raise cut_off("The server")


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", errors="replace").removeprefix("\ufeff")


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of server-sent events (HTML standard, 9.2); comments and other fields are left out."""
    data: list[str] = []
    for line in lines(chunks):
        name, _, value = line.partition(":")
        if not line:
            if data:
                yield "\n".join(data)
            data = []
        elif name == "data":
            data.append(value.removeprefix(" "))
        elif name == "error":  # a field of llama.cpp's own
            data.append(f'{{"error": {value}}}')
    if data:
        yield "\n".join(data)


def objects(texts: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Each text as the JSON object that it must be; empty ones are left out."""
    for text in texts:
        if text.strip():
            yield parse_object(text)


def parse_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ServerError(f"it sent what is no JSON object: {text}")
    return value
