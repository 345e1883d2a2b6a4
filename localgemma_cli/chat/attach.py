"""Files as part of a question: named, fenced, and only where they are text."""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.incoming import STDIN_LIMIT
from localgemma_cli.conversation import Message
from localgemma_cli.errors import NotFoundError, UsageError
from localgemma_cli.render.sanitize import one_line

_MENTION = re.compile(r"(?<!\S)@(\"[^\"\n]+\"|\S+)")
_BLOCK = re.compile(
    r"(?:^File (?P<name>[^\n]+):\n)?^(?P<fence>`{3,}).*?(?:^(?P=fence)$|\Z)", re.MULTILINE | re.DOTALL
)
_LIKE_PATH = re.compile(r"[/\\.]")
_TRAILING = ".,;:!?)"


@dataclass(frozen=True)
class Attachment:
    name: str
    text: str

    @property
    def block(self) -> str:
        """As the model reads it; the fence is longer than any within."""
        longest = max(map(len, re.findall(r"`{3,}", self.text)), default=2)
        fence = "`" * (longest + 1)
        return f"File {one_line(self.name)}:\n{fence}\n{self.text.removesuffix(chr(10))}\n{fence}"

    def size(self, backend: Backend | None) -> str:
        """In tokens; a server's are guessed."""
        tokens = backend.count((Message("user", self.block),)) if backend else None
        return f"about {len(self.text) // 4} tokens" if tokens is None else f"{tokens} tokens"


def read_attachment(path: str) -> Attachment:
    """NotFoundError for what is not there or not readable, UsageError for what is no text."""
    file = Path(path).expanduser()
    try:
        # Opened before it is looked at: what was checked is what is read. A FIFO would block otherwise.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from None
    try:
        _require_file(path, os.fstat(descriptor))
        with open(descriptor, "rb", closefd=False) as opened:
            data = opened.read(STDIN_LIMIT + 1)
    finally:
        os.close(descriptor)
    return Attachment(file.name, _text(path, data))


def mentioned(question: str) -> tuple[list[str], list[str]]:
    """(files, what only looks like one) behind an @ in `question`; a name with blanks stands in quotes.

    Not in blocks of code; and not those that an earlier asking has made blocks of already.
    """
    found: list[str] = []
    missing: list[str] = []
    attached = {match["name"] for match in _BLOCK.finditer(question)}
    for match in _MENTION.finditer(_BLOCK.sub("", question)):
        name = match[1].strip('"')
        paths = [each for each in (name, name.rstrip(_TRAILING)) if each]
        if any(one_line(Path(each).name) in attached for each in paths):
            continue
        if there := next((each for each in paths if os.path.lexists(os.path.expanduser(each))), None):
            found.append(there)
        elif _LIKE_PATH.search(paths[-1] if paths else ""):
            missing.append(paths[-1])
    return list(dict.fromkeys(found)), missing


def with_attachments(question: str, attachments: list[Attachment]) -> str:
    """The files first, so that the question is what the model has read last."""
    return "\n\n".join([*(attachment.block for attachment in attachments), question])


def _require_file(path: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{path} is a folder.", "Name the files in it, each by itself.")
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path} is no ordinary file.", "Pipe it into localgemma instead.")
    if status.st_size > STDIN_LIMIT:
        raise _too_large(path)


def _text(path: str, data: bytes) -> str:
    if len(data) > STDIN_LIMIT:  # it grew, or its size is not told (/proc)
        raise _too_large(path)
    if b"\0" in data:
        raise UsageError(f"{path} is binary.", "Attach text; convert the file first.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text: byte {error.start} begins no character.",
            "Convert it first, for example with: iconv -f latin1 -t utf-8",
        ) from None
    if not text.strip():
        raise UsageError(f"{path} is empty.", "Leave it out.")
    return text.replace("\r\n", "\n")


def _too_large(path: str) -> UsageError:
    return UsageError(
        f"{path} is larger than {STDIN_LIMIT >> 20} MiB.",
        "Attach the part that matters: no context holds so much.",
    )
