"""Files as part of a question: named, fenced, and only where they are text."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.prompt_text import Spans
from localgemma_cli.conversation import Message
from localgemma_cli.errors import UsageError
from localgemma_cli.sanitize import one_line
from localgemma_cli.text import read_text, repair_surrogates

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
        return size(*self.tokens(backend))

    def tokens(self, backend: Backend | None) -> tuple[int, bool]:
        """How many, and whether they were counted: a server's are guessed."""
        tokens = backend.count((Message("user", self.block),)) if backend else None
        return (len(self.text) // 4, False) if tokens is None else (tokens, True)


def size(tokens: int, counted: bool) -> str:
    return f"{tokens} tokens" if counted else f"about {tokens} tokens"


def read_attachment(path: str, *, pipes: bool = False) -> Attachment:
    """NotFoundError for what is not there or not readable, UsageError for what is no text.

    `pipes` allows a FIFO, which may block: what a shell makes of <(command).
    """
    text = read_text(path, pipes=pipes)
    if not text.strip():
        raise UsageError(f"{path} is empty.", "Leave it out.")
    return Attachment(repair_surrogates(Path(path).name), text)


def find_mentions(question: str, pasted: Spans = ()) -> tuple[list[str], list[str]]:
    """(files, what only looks like one) behind an @ in `question`; a name with blanks stands in quotes.

    Not where the @ was pasted, and not in blocks of code; nor what an earlier asking has made a block.
    """
    found: list[str] = []
    missing: list[str] = []
    blocks = list(_BLOCK.finditer(question))
    attached = {match["name"] for match in blocks}
    text = [*pasted, *(match.span() for match in blocks)]
    for match in _MENTION.finditer(question):
        if any(begin <= match.start() < end for begin, end in text):
            continue
        name = match[1].strip('"')
        paths = [each for each in (name, name.rstrip(_TRAILING)) if each]
        if any(one_line(Path(each).name) in attached for each in paths):
            continue
        if there := next((each for each in paths if _is_readable(each)), None):
            found.append(there)
        elif _LIKE_PATH.search(paths[-1] if paths else ""):
            missing.append(paths[-1])
    return list(dict.fromkeys(found)), missing


def _is_readable(path: str) -> bool:
    """A folder, a device or another's file is none: a word that only happens to be a name is text."""
    file = os.path.expanduser(path)
    return os.path.isfile(file) and os.access(file, os.R_OK)


def prepend_attachments(question: str, attachments: list[Attachment]) -> str:
    """The files first, so that the question is what the model has read last."""
    return "\n\n".join([*(attachment.block for attachment in attachments), question])
