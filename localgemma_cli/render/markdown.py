"""Markdown on a terminal as it streams: finished blocks are printed once, only the open block is redrawn."""

import re
import time
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from localgemma_cli.render.base import Answer
from localgemma_cli.render.sanitize import visible

_REDRAW_SECONDS = 0.1
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_CONTINUES = re.compile(r"\s+\S|[-*+] |\d+[.)] |[|>]")  # may belong to the block before a blank line


class MarkdownRenderer:
    def __init__(self, stdout: TextIO) -> None:
        self._console = Console(file=stdout, highlight=False)
        self._live: Live | None = None
        self._open = ""
        self._printed = False
        self._drawn = 0.0

    def delta(self, text: str) -> None:
        self._open += visible(text)
        block, rest = split_finished(self._open)
        if block:
            self._erase()
            self._print(block)
            self._open = rest
        if time.monotonic() - self._drawn > _REDRAW_SECONDS:
            self._draw()

    def finish(self, answer: Answer) -> None:
        self.abort()

    def abort(self) -> None:
        self._erase()
        if self._open.strip():
            self._print(self._open)
        self._open = ""
        self._console.file.flush()

    def _print(self, block: str) -> None:
        if self._printed:
            self._console.print()
        self._console.print(_markdown(block))
        self._printed = True

    def _draw(self) -> None:
        """Show the open block: as many of its last lines as the screen has room for."""
        if not self._open.strip():
            return
        started = time.monotonic()
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        lines = self._console.render_lines(_markdown(self._open), pad=False)
        shown = lines[-max(self._console.height - 2, 1) :]
        gap = [Text("")] if self._printed else []
        texts = [Text.assemble(*((part.text, part.style or "") for part in line)) for line in shown]
        self._live.update(Group(*gap, *texts), refresh=True)
        took = time.monotonic() - started
        self._drawn = time.monotonic() + 4 * took  # a block that is slow to draw is drawn less often

    def _erase(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def split_finished(text: str) -> tuple[str, str]:
    """(the blocks of `text` that no further text can change, the open rest)."""
    fence, cut, blank, position = "", 0, False, 0
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # an unfinished line tells nothing yet
        mark = _FENCE.match(line)
        if blank and not fence and line.strip() and not _CONTINUES.match(line):
            cut = position
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""
        blank = not line.strip()
        position += len(line)
    return text[:cut], text[cut:]


def _markdown(block: str) -> Markdown:
    return Markdown(block.strip("\n"), code_theme="ansi_dark", hyperlinks=False)
