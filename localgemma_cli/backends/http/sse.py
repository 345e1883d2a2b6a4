"""Parse the body of an answer: decompression, lines, server-sent events (SSE), JSON objects."""

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from localgemma_cli.backends.http.dialect import ServerError
from localgemma_cli.backends.http.server_errors import cut_off_error
from localgemma_cli.errors import EndpointError
from localgemma_cli.text import parse_json
from localgemma_cli.units import format_bytes

_CHUNK_BYTES = 2**16  # bytes
_LONGEST_MESSAGE = 4 * 2**20  # bytes; more than any message needs, and little memory once it is parsed


def decompress(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Decompress a body in small pieces, so that a small body cannot fill the memory at once."""
    if encoding in ("", "identity"):
        yield from chunks
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise EndpointError(
            "The server compressed its answer in a format that was not requested.",
            "Turn off compression in the server, or in the proxy in front of it.",
        )
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib
    try:
        for chunk in chunks:
            while chunk:
                if piece := unpacker.decompress(chunk, _CHUNK_BYTES):
                    yield piece
                chunk = unpacker.unconsumed_tail
        if piece := unpacker.flush(_CHUNK_BYTES):
            yield piece
    except zlib.error:
        raise EndpointError("The server's compressed answer is damaged.", "Ask again.") from None


def split_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield whole lines without their line ends; raises TransientError if the last line is incomplete.

    A line ends with CR, LF or both, also if the two arrive in different chunks.
    """
    rest, after_cr = bytearray(), False
    for chunk in chunks:
        start = 1 if after_cr and chunk.startswith(b"\n") else 0
        after_cr = chunk.endswith(b"\r")
        for part in chunk[start:].splitlines(keepends=True):
            rest += part
            if part.endswith((b"\n", b"\r")):
                yield _decode(rest.rstrip(b"\r\n"))
                rest.clear()
        _check_size(len(rest))
    if rest.rstrip().endswith((b"}", b"]")):
        yield _decode(rest)
    elif rest.strip():
        raise cut_off_error("The server")


def read_whole(chunks: Iterable[bytes]) -> str:
    """Read a body that is one message. Raises TransientError if it is incomplete."""
    body = bytearray()
    for chunk in chunks:
        body += chunk
        _check_size(len(body))
    if not body.rstrip().endswith(b"}"):
        raise cut_off_error("The server")
    return _decode(body)


def _check_size(length: int) -> None:
    if length > _LONGEST_MESSAGE:
        raise EndpointError(
            f"The server sent a message of more than {format_bytes(_LONGEST_MESSAGE)}.",
            "Check the server's log.",
        )


def _decode(line: bytearray) -> str:
    return line.decode("utf-8", errors="replace").removeprefix("\ufeff")


def parse_events(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the data of server-sent events (HTML standard, 9.2); skips comments and other fields."""
    data: list[str] = []
    size, kind = 0, ""
    for line in split_lines(chunks):
        name, _, value = line.partition(":")
        if not line:
            if data:
                yield _event_data("\n".join(data), kind)
            data, size, kind = [], 0, ""
        elif name == "data":
            data.append(value.removeprefix(" "))
        elif name == "event":
            kind = value.strip()
        elif name == "error":  # llama.cpp's own field
            data.append(f'{{"error": {value}}}')
        size += len(line) + 1
        _check_size(size)
    if data:
        yield _event_data("\n".join(data), kind)


def _event_data(data: str, kind: str) -> str:
    """The data of an event; for an `error` event, always an object that `error_text` recognizes."""
    if kind != "error":
        return data
    try:
        value = parse_message(data)
    except ServerError:
        return json.dumps({"error": data})
    return data if "error" in value else json.dumps({"error": value})


def parse_objects(texts: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Parse each text as a JSON object; skips empty texts and null, which are keep-alive messages."""
    for text in texts:
        if text.strip() not in ("", "null"):
            yield parse_message(text)


def parse_message(text: str) -> dict[str, Any]:
    """Parse one JSON object. Raises ServerError for anything else."""
    try:
        value = parse_json(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerError(f"not a JSON object: {text}")
    return value
