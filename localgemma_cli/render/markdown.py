"""Markdown on a terminal as it streams: append-only, so that what was printed can be selected and copied.

A line of the source is printed once it is whole, or row by row where it is wider than the terminal; a table
once it has ended. Only what is still being written is drawn again. Line breaks are kept as the model wrote
them, and lines of code are never broken. The cost of a token does not depend on what came before it.
"""

import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import TextIO

from rich.cells import cell_len, chop_cells
from rich.console import RenderableType
from rich.style import Style
from rich.text import Text

from localgemma_cli.render.base import Answer
from localgemma_cli.render.blocks import (
    Fence,
    Lead,
    fence,
    formula,
    is_rule,
    lead,
    table,
    underlined,
    without_break,
    without_closing,
)
from localgemma_cli.render.console import SafeConsole
from localgemma_cli.render.highlight import Highlighter
from localgemma_cli.render.inline import cut, styled
from localgemma_cli.render.theme import style
from localgemma_cli.render.thoughts import Thoughts
from localgemma_cli.sanitize import visible

_REDRAW_SECONDS = 0.1
_RULE_WIDTH = 40  # columns
_START_OF_ROW, _REST_OF_ROW, _REST_OF_SCREEN = "\r", "\x1b[K", "\x1b[J"
_WRAP_OFF, _WRAP_ON = "\x1b[?7l", "\x1b[?7h"  # a character that is wider than thought cannot start a row


class MarkdownRenderer:
    """`redraw` False: rows appear when they are whole, and the cursor never goes back (screen readers)."""

    def __init__(
        self, stdout: TextIO, *, redraw: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = SafeConsole(stdout)
        self._redraw = redraw and self._console.is_terminal and not self._console.is_dumb_terminal
        self._clock = clock
        self._source = ""  # of the line that is being written, what has not been read into `_row`
        self._lead: Lead | None = None
        self._row = Text()
        self._fence: Fence | None = None
        self._code = Highlighter("")
        self._table: list[str] = []
        self._formula = ""  # what closes the one that is open
        self._title: str | None = None  # a line that may turn out to be a heading by the next one
        self._in_paragraph = False
        self._printed = self._gap = False
        self._drawn_rows = 0  # of the preview
        self._drawn = float("-inf")
        self._thoughts = Thoughts(self._show_thought)

    def thinking(self, text: str) -> None:
        if self._console.is_terminal:
            self._thoughts.add(text)

    def delta(self, text: str) -> None:
        if text:
            self._thoughts.end()
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
        self._thoughts.end()
        if self._source or self._lead:
            self._end_line()
        self._end_table()
        self._end_title("")
        self._erase()
        self._console.file.flush()

    def _end_line(self) -> None:
        """`_source` is the rest of a whole line."""
        line, self._source = self._source, ""
        if self._lead is not None:
            self._add(styled(without_break(line)))
            self._end_row()
        elif self._fence is not None:
            self._code_line(line, self._fence)
        elif self._formula:
            self._formula_line(line)
        elif self._title is not None and (mark := underlined(line)):
            self._end_title(mark)
        else:
            self._end_title("")
            self._other_line(line)

    def _other_line(self, line: str) -> None:
        """One that goes on with no block but a table or a paragraph."""
        if line.lstrip().startswith("|"):
            self._table.append(line)
            return
        self._end_table()
        if self._may_be_title(line):
            self._title = line
        else:
            self._whole_line(line)

    def _may_be_title(self, line: str) -> bool:
        """A paragraph's first line that fits into one row."""
        if self._in_paragraph or not line.strip() or cell_len(line) > self._console.width:
            return False
        if fence(line) or is_rule(line) or formula(line):
            return False
        start = lead(line)
        return not (start.first.plain.strip() or start.style)

    def _end_title(self, mark: str) -> None:
        """Print the line that waits for the next one: a heading of `mark`, or by itself."""
        line, self._title = self._title, None
        if line is not None:
            rest = self._source
            self._whole_line(mark + line.lstrip() if mark else line)
            self._source = rest

    def _whole_line(self, line: str) -> None:
        self._in_paragraph = False
        if not line.strip():
            self._gap = self._printed
        elif opened := fence(line):
            self._fence, self._code = opened, Highlighter(opened.language)
            self._print(Text(line.strip(), style("md.mark")))
        elif is_rule(line):
            self._print(Text("─" * min(_RULE_WIDTH, self._console.width), style("md.mark")))
        elif closing := formula(line):
            self._formula = closing
            self._print(Text(line))
        else:
            self._source = without_closing(without_break(line))
            self._begin()
            self._read()
            self._add(styled(self._source))
            self._source = ""
            self._end_row()

    def _formula_line(self, line: str) -> None:
        """As it is; a formula has no blank lines, so that a lone mark swallows no more than a paragraph."""
        if not line.strip():
            self._formula = ""
            self._whole_line(line)
            return
        if self._formula in line:
            self._formula = ""
        self._print(Text(line))

    def _code_line(self, line: str, block: Fence) -> None:
        if block.closed_by(line):
            self._fence = None
            self._print(Text(line.strip(), style("md.mark")))
        else:
            indent = len(line) - len(line.lstrip(" "))
            self._print(self._code.line(line[min(indent, block.indent) :]))

    def _advance(self) -> None:
        """Print the rows of an unfinished line that nothing can change any more."""
        if self._fence is not None or self._formula:
            return
        if self._source.strip() and not underlined(self._source):
            self._end_title("")
        if cell_len(self._source) > self._console.width and self._lead is None:
            if self._is_block(self._source):
                return
            self._end_table()
            self._begin()
        if self._lead is not None:
            self._read()

    def _is_block(self, line: str) -> bool:
        """Whether the line, as far as it has come, is not one of words."""
        return bool(fence(line) or formula(line)) or line.lstrip().startswith("|")

    def _begin(self) -> None:
        self._lead, self._row = lead(self._source), Text()
        self._in_paragraph = not (self._lead.first.plain.strip() or self._lead.style)
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
        """What is being written, as far as it is known: its last rows, and no more than the screen holds."""
        if not self._redraw:
            return
        with self._console.capture() as captured:
            for row in self._preview_rows():
                self._console.print(row, soft_wrap=isinstance(row, Text))
        rows = captured.get().rstrip("\n").split("\n")[-self._most_rows :]
        if not any(row.strip() for row in rows):
            return
        gap = "\n" if self._gap and not self._drawn_rows else ""
        self._gap = self._gap and not gap
        body = f"{_REST_OF_ROW}\n".join(rows)
        below = _REST_OF_SCREEN if self._drawn_rows > 1 else ""
        self._console.file.write(f"{gap}{self._back()}{_WRAP_OFF}{body}{_REST_OF_ROW}{below}{_WRAP_ON}")
        self._console.file.flush()
        self._drawn_rows = len(rows)

    @property
    def _most_rows(self) -> int:
        """Those above the screen could not be drawn again."""
        return max(1, self._console.height - 2)

    def _preview_rows(self) -> Iterator[RenderableType]:
        width = self._console.width
        if self._table:
            lines = [*self._table[:2], *self._table[2:][-self._most_rows :], self._source]
            yield table(lines) or Text("\n".join(lines), overflow="ellipsis", no_wrap=True)
        elif self._fence is not None or self._formula or self._is_block(self._source):
            yield from map(Text, chop_cells(self._source[-width * self._most_rows :], width))
        else:
            start = self._lead or Lead(Text(), Text(), Style.null(), 0)
            if self._title is not None:
                yield Text(self._title)
            body = self._row + Text(self._source)
            rows = body.wrap(self._console, max(width - cell_len(start.first.plain), 10), tab_size=4)
            for before, row in zip(chain([start.first], repeat(start.following)), rows, strict=False):
                row.rstrip()
                yield Text.assemble(before, row)

    def _back(self) -> str:
        """To the preview's first row.

        A window made narrower may have wrapped it into more rows, but not every terminal does that: rather
        leave a part of it behind than erase what was printed above.
        """
        return _START_OF_ROW + (f"\x1b[{self._drawn_rows - 1}A" if self._drawn_rows > 1 else "")

    def _show_thought(self, text: str) -> None:
        self._console.print(Text(text, style("md.thinking")), end="", soft_wrap=True)
        self._console.file.flush()

    def _erase(self) -> None:
        if self._drawn_rows:
            self._console.file.write(
                self._back() + (_REST_OF_ROW if self._drawn_rows == 1 else _REST_OF_SCREEN)
            )
            self._drawn_rows = 0
