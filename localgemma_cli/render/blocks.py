"""What one line of Markdown begins: its marks, and how what it says is led and styled."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.style import Style
from rich.table import Table
from rich.text import Text

from localgemma_cli.render.inline import styled
from localgemma_cli.render.theme import style

_LEAD = re.compile(
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
_DISPLAYED = {"$$": "$$", "\\[": "\\]"}  # what opens a formula of whole lines, and what closes it


@dataclass(frozen=True)
class Fence:
    """An open block of code: what closes it, how far it is indented, and in which language it is."""

    mark: str
    indent: int
    language: str

    def closed_by(self, line: str) -> bool:
        bare = line.strip()
        return len(bare) >= len(self.mark) and bare == self.mark[0] * len(bare)


@dataclass(frozen=True)
class Lead:
    """What stands before the words of a line, on its first row and on the ones it is wrapped into."""

    first: Text
    following: Text
    style: Style
    length: int  # characters of the source that it stands for


def fence(line: str) -> Fence | None:
    match = _FENCE.match(line)
    if not match:
        return None
    return Fence(match[2], len(match[1].expandtabs(4)), (match[3].split() or [""])[0])


def is_rule(line: str) -> bool:
    return bool(_RULE.match(line))


def underlined(line: str) -> str:
    """The heading's mark that a line of = or - under a text stands for; empty for any other line."""
    match = _UNDERLINE.match(line)
    return "" if not match else "# " if "=" in match[1] else "## "


def formula(line: str) -> str:
    """What closes the formula that begins with this line and goes on after it; empty where none does."""
    bare = line.strip()
    closing = _DISPLAYED.get(bare[:2], "")
    return "" if closing in bare[2:] else closing


def without_break(line: str) -> str:
    """A backslash at a line's end asks for the line break that is kept anyway."""
    return _HARD_BREAK.sub("", line)


def lead(line: str) -> Lead:
    if match := _HEADING.match(line):
        look = style("md.title" if len(match[1]) == 1 else "md.heading")
        return Lead(Text(), Text(), look, match.end())
    match = _LEAD.match(line)
    assert match  # every part of it may be empty
    bars = "│ " * match["quote"].count(">")
    indent, item = match["indent"].expandtabs(4), match["item"] or ""
    bullet = "•" if item in ("-", "*", "+") else item
    first = Text(bars + indent + (f"{bullet} " if item else ""), style("md.mark"))
    following = Text(bars + " " * (len(first) - len(bars)), style("md.mark"))
    return Lead(first, following, Style.null(), match.end())


def without_closing(line: str) -> str:
    """A heading may be closed by the marks that opened it."""
    return _CLOSING.sub("", line) if _HEADING.match(line) else line


def table(lines: Sequence[str]) -> Table | None:
    """None where the lines only look like one: the second has to be of dashes."""
    if len(lines) < 2 or not _DELIMITER.match(lines[1]) or "|" not in lines[1]:
        return None
    head, marks, *rows = ([cell.strip() for cell in _cells(line)] for line in lines)
    grid = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", border_style=style("md.mark")
    )
    for index, name in enumerate(head):
        mark = marks[index] if index < len(marks) else ""
        right, centred = mark.endswith(":"), mark.startswith(":") and mark.endswith(":")
        grid.add_column(styled(name), justify="center" if centred else "right" if right else "left")
    for row in rows:
        row += [""] * (len(head) - len(row))
        grid.add_row(*(_cell(cell) for cell in row[: len(head) - 1]), _cell(" | ".join(row[len(head) - 1 :])))
    return grid


def _cell(source: str) -> Text:
    return Text("\n").join(styled(line) for line in _CELL_BREAK.split(source))


def _cells(line: str) -> list[str]:
    return _CELL.split(line.strip().removeprefix("|").removesuffix("|"))
