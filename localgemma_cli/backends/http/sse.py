"""Bytes as they come from a socket, cut into what a server meant: lines, events, JSON objects."""

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from localgemma_cli.backends.http.dialect import ServerError
from localgemma_cli.backends.http.failures import cut_off
from localgemma_cli.errors import EndpointError
from localgemma_cli.text import parse_json
from localgemma_cli.units import format_bytes

_UNPACKED = 2**16  # bytes
_LONGEST = 4 * 2**20  # bytes of one message: more than any answer, and little memory once it is parsed


def decoded(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """A body as it was before compression, in small pieces, whatever size they have together."""
    if encoding in ("", "identity"):
        yield from chunks
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise EndpointError(
            "The server compressed its answer in a way that it was not asked for.",
            "Turn compression off there, or in the proxy before it.",
        )
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # of either format
    try:
        for chunk in chunks:
            while chunk:
                if piece := unpacker.decompress(chunk, _UNPACKED):
                    yield piece
                chunk = unpacker.unconsumed_tail
        if piece := unpacker.flush(_UNPACKED):
            yield piece
    except zlib.error:
        raise EndpointError("The server's compressed answer is damaged.", "Ask again.") from None


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines without their ends; PassingError where the last one was cut off in its middle.

    A line ends in CR, LF or both, also where they come in two chunks.
    """
    rest, after_cr = bytearray(), False
    for chunk in chunks:
        start = 1 if after_cr and chunk.startswith(b"\n") else 0
        after_cr = chunk.endswith(b"\r")
        for part in chunk[start:].splitlines(keepends=True):
            rest += part
            if part.endswith((b"\n", b"\r")):
                yield _text(rest.rstrip(b"\r\n"))
                rest.clear()
        _check_size(len(rest))
    if rest.rstrip().endswith((b"}", b"]")):
        yield _text(rest)
    elif rest.strip():
        raise cut_off("The server")


def whole(chunks: Iterable[bytes]) -> str:
    """All of a body that is one message."""
    body = bytearray()
    for chunk in chunks:
        body += chunk
        _check_size(len(body))
    if not body.rstrip().endswith(b"}"):
        raise cut_off("The server")
    return _text(body)


def _check_size(length: int) -> None:
    if length > _LONGEST:
        raise EndpointError(
            f"The server sent a message of more than {format_bytes(_LONGEST)}.", "Look at the server's log."
        )


def _text(line: bytearray) -> str:
    return line.decode("utf-8", errors="replace").removeprefix("\ufeff")


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of server-sent events (HTML standard, 9.2); comments and other fields are left out."""
    data: list[str] = []
    size, kind = 0, ""
    for line in lines(chunks):
        name, _, value = line.partition(":")
        if not line:
            if data:
                yield _event("\n".join(data), kind)
            data, size, kind = [], 0, ""
        elif name == "data":
            data.append(value.removeprefix(" "))
        elif name == "event":
            kind = value.strip()
        elif name == "error":  # a field of llama.cpp's own
            data.append(f'{{"error": {value}}}')
        size += len(line) + 1
        _check_size(size)
    if data:
        yield _event("\n".join(data), kind)


def _event(data: str, kind: str) -> str:
    """The data of an event; that of an `error` always as an object that reports one."""
    if kind != "error":
        return data
    try:
        value = parse_object(data)
    except ServerError:
        return json.dumps({"error": data})
    return data if "error" in value else json.dumps({"error": value})


def objects(texts: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Each text as the JSON object that it must be; empty ones and null only keep the connection alive."""
    for text in texts:
        if text.strip() not in ("", "null"):
            yield parse_object(text)


def parse_object(text: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerError(f"it sent what is no JSON object: {text}")
    return value
