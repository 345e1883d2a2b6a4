"""Text input: decode bytes, repair characters, read files of a limited size."""

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
_BYTES = re.compile("[\udc80-\udcff]+")  # how Python decodes invalid UTF-8 in arguments and file names
_HALF = re.compile("[\ud800-\udfff]")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def repair_surrogates(text: str) -> str:
    """Join surrogate pairs into characters; a lone surrogate becomes U+FFFD."""
    if text.isascii() or not _HALF.search(text):
        return text
    text = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    text = _BYTES.sub(lambda run: run[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace"), text)
    return _HALF.sub("\ufffd", text)


def normalize(text: str) -> str:
    """Clean up text that a user typed or a file contains: no lone surrogates, BOM or NUL; line ends \\n."""
    text = repair_surrogates(text).lstrip("\ufeff").replace("\0", "\ufffd")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode_utf8(data: bytes, name: str, *, hint: str | None = None) -> str:
    """Decode UTF-8 with or without a byte order mark. Raises UsageError, which names the text `name`."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith(_UTF16):
            reason, encoding = "it is UTF-16", "utf-16"
        else:
            reason, encoding = f"invalid byte at position {error.start}", "latin1"
        raise UsageError(
            f"{name} is not UTF-8 text: {reason}.",
            hint or f"Convert it first, for example with: iconv -f {encoding} -t utf-8",
        ) from None


def decode_text(data: bytes, name: str) -> str:
    """Decode and normalize text. Raises UsageError for a NUL, and for bytes that are not UTF-8."""
    if b"\0" in data and not data.startswith(_UTF16):
        raise UsageError(f"{name} is a binary file.", "Convert it to text first.")
    return normalize(decode_utf8(data, name))


def read_bytes(path: str | Path, limit: int, *, pipes: bool = False) -> bytes:
    """Read a whole regular file; `pipes` also allows FIFOs, as for <(command).

    Raises OSError, and UsageError for a folder, a device, or more than `limit` bytes.
    """
    descriptor = open_descriptor(path, pipes)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{path} is a folder.", "Name the files in it one by one.")
        if not (stat.S_ISREG(status.st_mode) or (pipes and stat.S_ISFIFO(status.st_mode))):
            raise UsageError(f"{path} is not a regular file.", "Pipe it into localgemma instead.")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1) if status.st_size <= limit else None
    finally:
        os.close(descriptor)
    if data is None or len(data) > limit:  # the file grew, or reports no size (/proc)
        raise UsageError(f"{path} is larger than {format_bytes(limit)}.", "Use only the part that is needed.")
    return data


def open_descriptor(path: str | Path, pipes: bool = False) -> int:
    """Open without blocking, so that the file checked is the file read; a FIFO may block with `pipes`."""
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
    try:
        if not (pipes and stat.S_ISFIFO(os.stat(path).st_mode)):
            flags |= getattr(os, "O_NONBLOCK", 0)
        return os.open(path, flags)
    except ValueError:  # a NUL or a lone surrogate, which a file name cannot contain
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None


def read_text(path: str | Path, limit: int = TEXT_LIMIT, *, pipes: bool = False) -> str:
    """Read normalized text. Raises NotFoundError for an unreadable file, UsageError if it is not UTF-8."""
    return decode_text(read_file(path, limit, pipes=pipes), str(path))


def read_file(path: str | Path, limit: int, *, pipes: bool = False) -> bytes:
    """Read a file that the user named, as `read_bytes` does. Raises NotFoundError instead of OSError."""
    try:
        return read_bytes(os.path.expanduser(path), limit, pipes=pipes)
    except OSError as error:
        raise NotFoundError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from None


def parse_json(text: str | bytes) -> object:
    """Parse JSON; ValueError if it is invalid, also if it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
