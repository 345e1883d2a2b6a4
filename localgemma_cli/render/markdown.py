"""Markdown on a terminal as it streams: append-only, so that what was printed can be selected and copied.

A line of the source is printed once it is whole, or row by row where it is wider than the terminal. Only the
row that is being written is drawn again. Line breaks are kept as the model wrote them, and lines of code are
never broken. The cost of a token does not depend on what came before it.
"""

import time
from collections.abc import Callable
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from localgemma_cli.render.base import Answer
from localgemma_cli.render.blocks import Fence, Lead, fence, is_rule, lead, table, without_closing
from localgemma_cli.render.highlight import Highlighter
from localgemma_cli.render.inline import cut, styled
from localgemma_cli.render.sanitize import visible
from localgemma_cli.render.theme import style

_REDRAW_SECONDS = 0.1
_RULE_WIDTH = 40  # columns
_START_OF_ROW, _REST_OF_ROW = "\r", "\x1b[K"
_WRAP_OFF, _WRAP_ON = "\x1b[?7l", "\x1b[?7h"  # a character that is wider than thought cannot start a row


class MarkdownRenderer:
    """`redraw` False: rows appear when they are whole, and the cursor never goes back (screen readers)."""

    def __init__(
        self, stdout: TextIO, *, redraw: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = Console(file=stdout, highlight=False)
        self._redraw = redraw and self._console.is_terminal and not self._console.is_dumb_terminal
        self._clock = clock
        self._source = ""  # of the line that is being written, what has not been read into `_row`
        self._lead: Lead | None = None
        self._row = Text()
        self._fence: Fence | None = None
        self._code = Highlighter("")
        self._table: list[str] = []
        self._printed = self._gap = self._previewed = False
        self._drawn = float("-inf")

    def delta(self, text: str) -> None:
        *lines, rest = (self._source + visible(text)).split("\n")
        for line in lines:
            self._source = line
            self._end_line()
        self._source = rest
        if self._clock() - self._drawn >= _REDRAW_SECONDS:
            self._advance()
            self._preview()
            self._drawn = self._clock()

    def finish(self, answer: Answer) -> None:
        self.abort()

    def abort(self) -> None:
        if self._source or self._lead:
            self._end_line()
        self._end_table()
        self._erase()
        self._console.file.flush()

    def _end_line(self) -> None:
        """`_source` is the rest of a whole line."""
        line, self._source = self._source, ""
        if self._lead is not None:
            self._add(styled(line))
            self._end_row()
        elif self._fence is not None:
            self._code_line(line, self._fence)
        elif line.lstrip().startswith("|"):
            self._table.append(line)
        else:
            self._end_table()
            self._whole_line(line)

    def _whole_line(self, line: str) -> None:
        if not line.strip():
            self._gap = self._printed
        elif opened := fence(line):
            self._fence, self._code = opened, Highlighter(opened.language)
            self._print(Text(line.strip(), style("md.mark")))
        elif is_rule(line):
            self._print(Text("─" * min(_RULE_WIDTH, self._console.width), style("md.mark")))
        else:
            self._source = without_closing(line)
            self._begin()
            self._read()
            self._add(styled(self._source))
            self._source = ""
            self._end_row()

    def _code_line(self, line: str, block: Fence) -> None:
        if block.closed_by(line):
            self._fence = None
            self._print(Text(line.strip(), style("md.mark")))
        else:
            indent = len(line) - len(line.lstrip(" "))
            self._print(self._code.line(line[min(indent, block.indent) :]))

    def _advance(self) -> None:
        """Print the rows of an unfinished line that nothing can change any more."""
        if self._fence is None and cell_len(self._source) > self._console.width and self._lead is None:
            if fence(self._source) or self._source.lstrip().startswith("|"):
                return
            self._end_table()
            self._begin()
        if self._lead is not None:
            self._read()

    def _begin(self) -> None:
        self._lead, self._row = lead(self._source), Text()
        self._source = self._source[self._lead.length :]

    def _read(self) -> None:
        while end := cut(self._source):
            self._add(styled(self._source[:end]))
            self._source = self._source[end:]

    def _add(self, words: Text) -> None:
        assert self._lead is not None
        words.stylize_before(self._lead.style)
        self._row.append_text(words)
        width = max(self._console.width - cell_len(self._lead.first.plain), 10)
        body = self._row.plain.rstrip()
        if cell_len(body) > width:
            blank = self._row.plain[len(body) :]
            *rows, self._row = self._row[: len(body)].wrap(self._console, width, tab_size=4)
            self._row.append(blank)
            for row in rows:
                self._print_row(row)

    def _end_row(self) -> None:
        if self._row.plain.strip() or (self._lead and self._lead.first is not self._lead.following):
            self._print_row(self._row)
        self._lead, self._row = None, Text()

    def _print_row(self, row: Text) -> None:
        assert self._lead is not None
        row.rstrip()
        self._print(Text.assemble(self._lead.first, row))
        self._lead = Lead(self._lead.following, self._lead.following, self._lead.style, 0)

    def _end_table(self) -> None:
        lines, self._table = self._table, []
        if grid := table(lines):
            self._print(grid)
        else:
            for line in lines:
                self._print(Text(line))

    def _print(self, what: RenderableType) -> None:
        self._erase()
        if self._gap:
            self._console.print()
        self._console.print(what, soft_wrap=isinstance(what, Text))
        self._printed, self._gap = True, False

    def _preview(self) -> None:
        """The row that is being written, as far as it is known; its end where it has no room."""
        shown = (self._lead.first if self._lead else Text()) + self._row + Text(self._source)
        if not self._redraw or not shown.plain.strip():
            return
        while shown.cell_len >= self._console.width:
            shown = shown[max(1, shown.cell_len - self._console.width) :]
        out = self._console.file
        gap = "\n" if self._gap and not self._previewed else ""
        self._gap = self._gap and not gap
        out.write(gap + _START_OF_ROW + _WRAP_OFF)
        self._console.print(shown, end="", soft_wrap=True)
        out.write(_REST_OF_ROW + _WRAP_ON)
        out.flush()
        self._previewed = True

    def _erase(self) -> None:
        if self._previewed:
            self._console.file.write(_START_OF_ROW + _REST_OF_ROW)
            self._previewed = False
