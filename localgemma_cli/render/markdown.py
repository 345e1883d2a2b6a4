"""Render Markdown on a terminal as it streams; printed text is never redrawn and can be copied.

A source line is printed when it is complete, or row by row if it is wider than the terminal; a table when it
ends. Only the incomplete part is drawn again. Line breaks stay as the model wrote them, and lines of code
are not wrapped. The cost of a token does not depend on the length of the answer.
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
    LinePrefix,
    formula_end,
    is_rule,
    parse_fence,
    parse_prefix,
    parse_table,
    parse_underline,
    strip_closing_marks,
    strip_hard_break,
)
from localgemma_cli.render.console import SafeConsole
from localgemma_cli.render.highlight import Highlighter
from localgemma_cli.render.inline import find_cut, style_inline
from localgemma_cli.render.theme import theme_style
from localgemma_cli.render.thoughts import Thoughts
from localgemma_cli.sanitize import visible

_REDRAW_SECONDS = 0.1
_RULE_WIDTH = 40  # columns
_START_OF_ROW, _REST_OF_ROW, _REST_OF_SCREEN = "\r", "\x1b[K", "\x1b[J"
# While it is off, a character that is wider than measured does not start a new row.
_WRAP_OFF, _WRAP_ON = "\x1b[?7l", "\x1b[?7h"


class MarkdownRenderer:
    """Renders one answer; without `redraw` only whole rows, and the cursor never moves (screen readers)."""

    def __init__(
        self, stdout: TextIO, *, redraw: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = SafeConsole(stdout)
        self._redraw = redraw and self._console.is_terminal and not self._console.is_dumb_terminal
        self._clock = clock
        self._source = ""  # of the current line, the part that is not yet in `_row`
        self._prefix: LinePrefix | None = None
        self._row = Text()
        self._fence: Fence | None = None
        self._code = Highlighter("")
        self._table: list[str] = []
        self._formula = ""  # the closing mark of the open formula
        self._title: str | None = None  # a line that becomes a heading if the next line underlines it
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
        if self._source or self._prefix:
            self._end_line()
        self._end_table()
        self._end_title("")
        self._erase()
        self._console.file.flush()

    def _end_line(self) -> None:
        """Handle the complete line in `_source`."""
        line, self._source = self._source, ""
        if self._prefix is not None:
            self._add(style_inline(strip_hard_break(line)))
            self._end_row()
        elif self._fence is not None:
            self._code_line(line, self._fence)
        elif self._formula:
            self._formula_line(line)
        elif self._title is not None and (mark := parse_underline(line)):
            self._end_title(mark)
        else:
            self._end_title("")
            self._other_line(line)

    def _other_line(self, line: str) -> None:
        """Handle a line outside of code, formulas and headings."""
        if line.lstrip().startswith("|"):
            self._table.append(line)
            return
        self._end_table()
        if self._may_be_title(line):
            self._title = line
        else:
            self._whole_line(line)

    def _may_be_title(self, line: str) -> bool:
        """Whether the line can become a heading: the first of a paragraph, in one row."""
        if self._in_paragraph or not line.strip() or cell_len(line) > self._console.width:
            return False
        if parse_fence(line) or is_rule(line) or formula_end(line):
            return False
        start = parse_prefix(line)
        return not (start.first.plain.strip() or start.style)

    def _end_title(self, mark: str) -> None:
        """Print the waiting line: as a heading with `mark`, or as it is."""
        line, self._title = self._title, None
        if line is not None:
            rest = self._source
            self._whole_line(mark + line.lstrip() if mark else line)
            self._source = rest

    def _whole_line(self, line: str) -> None:
        self._in_paragraph = False
        if not line.strip():
            self._gap = self._printed
        elif opened := parse_fence(line):
            self._fence, self._code = opened, Highlighter(opened.language)
            self._print(Text(line.strip(), theme_style("md.mark")))
        elif is_rule(line):
            self._print(Text("─" * min(_RULE_WIDTH, self._console.width), theme_style("md.mark")))
        elif closing := formula_end(line):
            self._formula = closing
            self._print(Text(line))
        else:
            self._source = strip_closing_marks(strip_hard_break(line))
            self._begin()
            self._read()
            self._add(style_inline(self._source))
            self._source = ""
            self._end_row()

    def _formula_line(self, line: str) -> None:
        """Print a line of a formula unchanged; a blank line ends a formula that is not closed."""
        if not line.strip():
            self._formula = ""
            self._whole_line(line)
            return
        if self._formula in line:
            self._formula = ""
        self._print(Text(line))

    def _code_line(self, line: str, block: Fence) -> None:
        if block.is_closed_by(line):
            self._fence = None
            self._print(Text(line.strip(), theme_style("md.mark")))
        else:
            indent = len(line) - len(line.lstrip(" "))
            self._print(self._code.line(line[min(indent, block.indent) :]))

    def _advance(self) -> None:
        """Print the rows of an incomplete line that later text cannot change."""
        if self._fence is not None or self._formula:
            return
        if self._source.strip() and not parse_underline(self._source):
            self._end_title("")
        if cell_len(self._source) > self._console.width and self._prefix is None:
            if self._is_block(self._source):
                return
            self._end_table()
            self._begin()
        if self._prefix is not None:
            self._read()

    def _is_block(self, line: str) -> bool:
        """Whether the incomplete line begins code, a formula or a table."""
        return bool(parse_fence(line) or formula_end(line)) or line.lstrip().startswith("|")

    def _begin(self) -> None:
        self._prefix, self._row = parse_prefix(self._source), Text()
        self._in_paragraph = not (self._prefix.first.plain.strip() or self._prefix.style)
        self._source = self._source[self._prefix.length :]

    def _read(self) -> None:
        while end := find_cut(self._source):
            self._add(style_inline(self._source[:end]))
            self._source = self._source[end:]

    def _add(self, words: Text) -> None:
        assert self._prefix is not None
        words.stylize_before(self._prefix.style)
        self._row.append_text(words)
        width = max(self._console.width - cell_len(self._prefix.first.plain), 10)
        body = self._row.plain.rstrip()
        if cell_len(body) > width:
            blank = self._row.plain[len(body) :]
            *rows, self._row = self._row[: len(body)].wrap(self._console, width, tab_size=4)
            self._row.append(blank)
            for row in rows:
                self._print_row(row)

    def _end_row(self) -> None:
        if self._row.plain.strip() or (self._prefix and self._prefix.first is not self._prefix.following):
            self._print_row(self._row)
        self._prefix, self._row = None, Text()

    def _print_row(self, row: Text) -> None:
        assert self._prefix is not None
        row.rstrip()
        self._print(Text.assemble(self._prefix.first, row))
        self._prefix = LinePrefix(self._prefix.following, self._prefix.following, self._prefix.style, 0)

    def _end_table(self) -> None:
        lines, self._table = self._table, []
        if grid := parse_table(lines):
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
        """Draw the incomplete part: its last rows, at most what the screen can show."""
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
        """Rows of the preview; those above the screen could not be redrawn."""
        return max(1, self._console.height - 2)

    def _preview_rows(self) -> Iterator[RenderableType]:
        width = self._console.width
        if self._table:
            lines = [*self._table[:2], *self._table[2:][-self._most_rows :], self._source]
            yield parse_table(lines) or Text("\n".join(lines), overflow="ellipsis", no_wrap=True)
        elif self._fence is not None or self._formula or self._is_block(self._source):
            yield from map(Text, chop_cells(self._source[-width * self._most_rows :], width))
        else:
            start = self._prefix or LinePrefix(Text(), Text(), Style.null(), 0)
            if self._title is not None:
                yield Text(self._title)
            body = self._row + Text(self._source)
            rows = body.wrap(self._console, max(width - cell_len(start.first.plain), 10), tab_size=4)
            for before, row in zip(chain([start.first], repeat(start.following)), rows, strict=False):
                row.rstrip()
                yield Text.assemble(before, row)

    def _back(self) -> str:
        """The escape sequence that moves the cursor to the preview's first row.

        In a window made narrower, some terminals wrap the preview into more rows. They are not counted: part
        of the preview may remain, but printed text above it is never erased.
        """
        return _START_OF_ROW + (f"\x1b[{self._drawn_rows - 1}A" if self._drawn_rows > 1 else "")

    def _show_thought(self, text: str) -> None:
        self._console.print(Text(text, theme_style("md.thinking")), end="", soft_wrap=True)
        self._console.file.flush()

    def _erase(self) -> None:
        if self._drawn_rows:
            self._console.file.write(
                self._back() + (_REST_OF_ROW if self._drawn_rows == 1 else _REST_OF_SCREEN)
            )
            self._drawn_rows = 0
