"""Text where it enters the program: bytes to characters, whole characters only, files within bounds."""

import errno
import json
import os
import re
import stat
from pathlib import Path

from localgemma_cli.errors import NotFoundError, UsageError
from localgemma_cli.units import format_bytes

TEXT_LIMIT = 4 * 2**20  # bytes; over a hundred times what an 8192-token context can hold

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_BYTES = re.compile("[\udc80-\udcff]+")  # as Python decodes what is not UTF-8 in arguments and file names
_HALF = re.compile("[\ud800-\udfff]")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def repair_surrogates(text: str) -> str:
    """Both halves of a surrogate pair become their character, a lone half U+FFFD; the rest stays."""
    if text.isascii() or not _HALF.search(text):
        return text
    text = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    text = _BYTES.sub(lambda run: run[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace"), text)
    return _HALF.sub("\ufffd", text)


def normalize(text: str) -> str:
    """Text from a person or a text file: whole characters, no byte order mark, no NUL, lines end in \\n."""
    text = repair_surrogates(text).lstrip("\ufeff").replace("\0", "\ufffd")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode_utf8(data: bytes, name: str, *, hint: str | None = None) -> str:
    """UTF-8 with or without a byte order mark; UsageError, which calls the text `name`, for anything else."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith(_UTF16):
            reason, encoding = "it is UTF-16", "utf-16"
        else:
            reason, encoding = f"byte {error.start} begins no character", "latin1"
        raise UsageError(
            f"{name} is not UTF-8 text: {reason}.",
            hint or f"Convert it first, for example with: iconv -f {encoding} -t utf-8",
        ) from None


def decode_text(data: bytes, name: str) -> str:
    """Normalized text; UsageError for bytes that are not UTF-8 or hold a NUL."""
    if b"\0" in data and not data.startswith(_UTF16):
        raise UsageError(f"{name} is binary.", "Give text; convert the file first.")
    return normalize(decode_utf8(data, name))


def read_bytes(path: str | Path, limit: int, *, pipes: bool = False) -> bytes:
    """A whole regular file; OSError where it cannot be read, UsageError for more than `limit` bytes.

    UsageError as well for a folder or a device, which may have no end; `pipes` allows FIFOs: <(command).
    """
    descriptor = open_descriptor(path, pipes)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{path} is a folder.", "Name the files in it, each by itself.")
        if not (stat.S_ISREG(status.st_mode) or (pipes and stat.S_ISFIFO(status.st_mode))):
            raise UsageError(f"{path} is no ordinary file.", "Pipe it into localgemma instead.")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1) if status.st_size <= limit else None
    finally:
        os.close(descriptor)
    if data is None or len(data) > limit:  # it grew, or its size is not told (/proc)
        raise UsageError(f"{path} is larger than {format_bytes(limit)}.", "Give the part that matters.")
    return data


def open_descriptor(path: str | Path, pipes: bool = False) -> int:
    """Opened before it is looked at: what was checked is what is read. Only a wanted FIFO may block."""
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
    try:
        if not (pipes and stat.S_ISFIFO(os.stat(path).st_mode)):
            flags |= getattr(os, "O_NONBLOCK", 0)
        return os.open(path, flags)
    except ValueError:  # a NUL or half a character, which no file's name can hold
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None


def read_text(path: str | Path, limit: int = TEXT_LIMIT, *, pipes: bool = False) -> str:
    """Normalized text; NotFoundError for a file that cannot be read, UsageError for what is no UTF-8 text."""
    return decode_text(read_file(path, limit, pipes=pipes), str(path))


def read_file(path: str | Path, limit: int, *, pipes: bool = False) -> bytes:
    """`read_bytes` for a file that the user named: NotFoundError where it cannot be read."""
    try:
        return read_bytes(os.path.expanduser(path), limit, pipes=pipes)
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from None


def parse_json(text: str | bytes) -> object:
    """ValueError for everything that cannot be read, such as too deep a nesting."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
