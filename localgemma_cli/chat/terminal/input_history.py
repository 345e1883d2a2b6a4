"""The input history: what was entered at the prompt, in this chat and earlier ones."""

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
    """The history at `path`, shared by all chats of this user; kept in memory only if that is not possible.

    `known` receives the pasted spans of the entries on disk; `now` returns those of the entry being stored.
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
    """The file is private; the comment before an entry lists its pasted spans. Ignores a full disk."""

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
