"""Recognize the Markdown block that a line begins: headings, lists, quotes, fences, formulas, tables."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.style import Style
from rich.table import Table
from rich.text import Text

from localgemma_cli.render.inline import style_inline
from localgemma_cli.render.theme import theme_style

_PREFIX = re.compile(
    r"(?P<quote>(?: {0,3}> ?)*)(?P<indent>[ \t]*)(?:(?P<item>[-*+]|\d{1,9}[.)])(?P<gap>[ \t]+))?"
)
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+")
_CLOSING = re.compile(r"[ \t]+#+[ \t]*$")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$")
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})([^`]*)$")
_DELIMITER = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
_CELL = re.compile(r"(?<!\\)\|")
_CELL_BREAK = re.compile(r"<br ?/?>")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_HARD_BREAK = re.compile(r"(?<!\\)\\$")
_DISPLAYED = {"$$": "$$", "\\[": "\\]"}  # opening and closing marks of a formula of whole lines


@dataclass(frozen=True)
class Fence:
    """An open code block: its mark, indentation in columns, and language."""

    mark: str
    indent: int
    language: str

    def is_closed_by(self, line: str) -> bool:
        bare = line.strip()
        return len(bare) >= len(self.mark) and bare == self.mark[0] * len(bare)


@dataclass(frozen=True)
class LinePrefix:
    """What is printed before the text of a line: on its first row, and on the rows it wraps into."""

    first: Text
    following: Text
    style: Style
    length: int  # of the mark in the source, in characters


def parse_fence(line: str) -> Fence | None:
    match = _FENCE.match(line)
    if not match:
        return None
    return Fence(match[2], len(match[1].expandtabs(4)), (match[3].split() or [""])[0])


def is_rule(line: str) -> bool:
    return bool(_RULE.match(line))


def parse_underline(line: str) -> str:
    """The heading mark (`# ` or `## `) that an underline of = or - means; empty for any other line."""
    match = _UNDERLINE.match(line)
    return "" if not match else "# " if "=" in match[1] else "## "


def formula_end(line: str) -> str:
    """The closing mark of a formula that this line opens and does not close; empty if there is none."""
    bare = line.strip()
    closing = _DISPLAYED.get(bare[:2], "")
    return "" if closing in bare[2:] else closing


def strip_hard_break(line: str) -> str:
    """The line without a backslash at its end: line breaks are kept anyway."""
    return _HARD_BREAK.sub("", line)


def parse_prefix(line: str) -> LinePrefix:
    if match := _HEADING.match(line):
        look = theme_style("md.title" if len(match[1]) == 1 else "md.heading")
        return LinePrefix(Text(), Text(), look, match.end())
    match = _PREFIX.match(line)
    assert match  # every part of the pattern is optional
    bars = "│ " * match["quote"].count(">")
    indent, item = match["indent"].expandtabs(4), match["item"] or ""
    bullet = "•" if item in ("-", "*", "+") else item
    first = Text(bars + indent + (f"{bullet} " if item else ""), theme_style("md.mark"))
    following = Text(bars + " " * (len(first) - len(bars)), theme_style("md.mark"))
    return LinePrefix(first, following, Style.null(), match.end())


def strip_closing_marks(line: str) -> str:
    """A heading without its closing # marks; any other line unchanged."""
    return _CLOSING.sub("", line) if _HEADING.match(line) else line


def parse_table(lines: Sequence[str]) -> Table | None:
    """The table, or None if the second line is not a delimiter row of dashes."""
    if len(lines) < 2 or not _DELIMITER.match(lines[1]) or "|" not in lines[1]:
        return None
    head, marks, *rows = ([cell.strip() for cell in _cells(line)] for line in lines)
    grid = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        header_style="bold",
        border_style=theme_style("md.mark"),
    )
    for index, name in enumerate(head):
        mark = marks[index] if index < len(marks) else ""
        right, centred = mark.endswith(":"), mark.startswith(":") and mark.endswith(":")
        grid.add_column(style_inline(name), justify="center" if centred else "right" if right else "left")
    for row in rows:
        row += [""] * (len(head) - len(row))
        grid.add_row(*(_cell(cell) for cell in row[: len(head) - 1]), _cell(" | ".join(row[len(head) - 1 :])))
    return grid


def _cell(source: str) -> Text:
    return Text("\n").join(style_inline(line) for line in _CELL_BREAK.split(source))


def _cells(line: str) -> list[str]:
    return _CELL.split(line.strip().removeprefix("|").removesuffix("|"))
