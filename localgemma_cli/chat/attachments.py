"""Text files attached to a question, each in a code fence under its name."""

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
        """The file as the model reads it; the fence is longer than any in the text."""
        longest = max(map(len, re.findall(r"`{3,}", self.text)), default=2)
        fence = "`" * (longest + 1)
        return f"File {one_line(self.name)}:\n{fence}\n{self.text.removesuffix(chr(10))}\n{fence}"

    def size(self, backend: Backend | None) -> str:
        """The number of its tokens, in words."""
        return format_tokens(*self.count_tokens(backend))

    def count_tokens(self, backend: Backend | None) -> tuple[int, bool]:
        """The number of tokens, and whether it is exact: a server does not count them."""
        tokens = backend.count((Message("user", self.block),)) if backend else None
        return (len(self.text) // 4, False) if tokens is None else (tokens, True)


def format_tokens(tokens: int, is_exact: bool) -> str:
    return f"{tokens} tokens" if is_exact else f"about {tokens} tokens"


def read_attachment(path: str, *, pipes: bool = False) -> Attachment:
    """Read a text file; raises NotFoundError if it cannot be read, UsageError if it is not text.

    `pipes` allows a FIFO, which may block: a shell makes one for <(command).
    """
    text = read_text(path, pipes=pipes)
    if not text.strip():
        raise UsageError(f"{path} is empty.", "Remove it from the files.")
    return Attachment(repair_surrogates(Path(path).name), text)


def find_mentions(question: str, pasted: Spans = ()) -> tuple[list[str], list[str]]:
    """The files named by @PATH in `question`, and the paths that name no file; names with spaces are quoted.

    Skips pasted text, code blocks, and files that a repeated question already contains.
    """
    found: list[str] = []
    missing: list[str] = []
    blocks = list(_BLOCK.finditer(question))
    attached = {match["name"] for match in blocks}
    skipped = [*pasted, *(match.span() for match in blocks)]
    for match in _MENTION.finditer(question):
        if any(begin <= match.start() < end for begin, end in skipped):
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
    """Whether it is a readable regular file; anything else stays text."""
    file = os.path.expanduser(path)
    return os.path.isfile(file) and os.access(file, os.R_OK)


def prepend_attachments(question: str, attachments: list[Attachment]) -> str:
    """Put the files before the question, so that the model reads the question last."""
    return "\n\n".join([*(attachment.block for attachment in attachments), question])
