"""What was typed at the prompt, in this chat and in those before."""

import os
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from localgemma_cli.text import repair_surrogates


def input_history(path: Path | None) -> History:
    """Of all chats of this user, multi-line entries whole; private, and in memory only where it cannot be."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return _InputHistory(path)


class _InputHistory(FileHistory):
    """Goes on in memory where the disk is full."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(repair_surrogates(string))
