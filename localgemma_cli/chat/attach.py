"""Files as part of a question: named, fenced, and only where they are text."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from localgemma_cli.backends.base import Backend
from localgemma_cli.conversation import Message
from localgemma_cli.errors import UsageError
from localgemma_cli.render.sanitize import one_line
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
        """In tokens; a server's are guessed."""
        tokens = backend.count((Message("user", self.block),)) if backend else None
        return f"about {len(self.text) // 4} tokens" if tokens is None else f"{tokens} tokens"


def read_attachment(path: str) -> Attachment:
    """NotFoundError for what is not there or not readable, UsageError for what is no text."""
    text = read_text(path)
    if not text.strip():
        raise UsageError(f"{path} is empty.", "Leave it out.")
    return Attachment(repair_surrogates(Path(path).name), text)


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
