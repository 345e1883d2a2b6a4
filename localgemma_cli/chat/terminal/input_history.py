"""What was typed and pasted at the prompt, in this chat and in those before."""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from localgemma_cli.chat.prompt_text import Spans
from localgemma_cli.environment import make_private
from localgemma_cli.text import repair_surrogates

_PASTED = re.compile(rb"# .* pasted ((?:\d{1,9}-\d{1,9} ?)+)$")


def input_history(path: Path | None, known: dict[str, Spans], now: Callable[[], Spans]) -> History:
    """Of all chats of this user, multi-line entries whole; private, and in memory only where it cannot be.

    `known` gets what was pasted of the entries on disk; `now` is that of the one that is stored.
    """
    if path is None:
        return InMemoryHistory()
    try:
        make_private(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return _InputHistory(path, known, now)


class _InputHistory(FileHistory):
    """Goes on in memory where the disk is full; an entry's comment tells what of it was pasted."""

    def __init__(self, path: Path, known: dict[str, Spans], now: Callable[[], Spans]) -> None:
        super().__init__(path)
        self._path, self._known, self._now = path, known, now

    def load_history_strings(self) -> Iterable[str]:
        found: list[str] = []
        with suppress(OSError):
            for text, pasted in _entries(self._path):
                found.append(text)
                self._known.pop(text, None)
                if pasted:
                    self._known[text] = pasted
        return reversed(found)

    def store_string(self, string: str) -> None:
        spans = " ".join(f"{begin}-{end}" for begin, end in self._now())
        lines = "".join(f"+{line}\n" for line in repair_surrogates(string).split("\n"))
        entry = f"\n# {datetime.now()}{' pasted ' + spans if spans else ''}\n{lines}"
        with suppress(OSError), self._path.open("ab") as file:
            file.write(entry.encode("utf-8", errors="replace"))


def _entries(path: Path) -> Iterable[tuple[str, Spans]]:
    """Oldest first."""
    lines: list[bytes] = []
    pasted: Spans = ()
    with path.open("rb") as file:
        for line in [*file, b"# "]:
            if line.startswith(b"+"):
                lines.append(line[1:])
                continue
            if lines:
                yield b"".join(lines)[:-1].decode("utf-8", errors="replace"), pasted
                lines, pasted = [], ()
            if found := _PASTED.match(line.rstrip()):
                pasted = tuple((int(a), int(b)) for a, b in (each.split(b"-") for each in found[1].split()))
