"""What at the prompt was typed, and what only pasted: pasted text is text, whatever it looks like."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.buffer import Buffer

Spans = tuple[tuple[int, int], ...]  # [begin, end) in order, none touching the next
_REMEMBERED = 100  # texts of which something pasted was cut out; the prompt's kill ring holds 60 pieces
_ONE_WORD = re.compile(r"[^\s@]+")


@dataclass(frozen=True)
class Line:
    """What came from the prompt, or is to be edited there; `pasted` are the parts that nobody typed."""

    text: str = ""
    pasted: Spans = ()

    def typed(self, begin: int, end: int) -> bool:
        """Whether all of that part was."""
        return not any(True for _ in _within(self.pasted, begin, end))

    def part(self, begin: int, end: int) -> "Line":
        inner = _within(self.pasted, begin, end)
        return Line(self.text[begin:end], tuple((first - begin, last - begin) for first, last in inner))

    def stripped(self, characters: str | None = None) -> "Line":
        """Without the blanks, or those of `characters`, that were typed at its ends."""
        begin, end = 0, len(self.text)
        while begin < end and self._goes(begin, characters):
            begin += 1
        while begin < end and self._goes(end - 1, characters):
            end -= 1
        return self.part(begin, end)

    def mended(self, mend: Callable[[str], str]) -> "Line":
        """Each part of it as `mend` gives it."""
        edges = [0, *(edge for span in self.pasted for edge in span), len(self.text)]
        text = ""
        pasted: list[tuple[int, int]] = []
        for number, (begin, end) in enumerate(pairwise(edges)):
            part = mend(self.text[begin:end])
            if number % 2 and part:
                pasted.append((len(text), len(text) + len(part)))
            text += part
        return Line(text, tuple(pasted))

    def _goes(self, at: int, characters: str | None) -> bool:
        return not self.text[at].strip(characters) and self.typed(at, at + 1)


def from_elsewhere(text: str) -> Line:
    """A text that nobody typed at this prompt."""
    return Line(text, ((0, len(text)),) if text else ())


def replaced(pasted: Spans, begin: int, end: int, length: int, *, by_paste: bool) -> Spans:
    """The spans once the characters from `begin` to `end` have given way to `length` others."""
    more = length - (end - begin)
    before = [(first, min(last, begin)) for first, last in pasted if first < begin]
    after = [(max(first, end) + more, last + more) for first, last in pasted if last > end]
    new = [(begin, begin + length)] if by_paste and length else []
    joined: list[tuple[int, int]] = []
    for first, last in [*before, *new, *after]:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def difference(old: str, new: str, cursor: int) -> tuple[int, int, int]:
    """(begin, end, length): what of `old` gave way to how much of `new`; `cursor` is where typing ended."""
    more = len(new) - len(old)
    begin = cursor - max(more, 0)
    if begin >= 0 and old[:begin] == new[:begin] and old[begin + max(-more, 0) :] == new[cursor:]:
        return begin, begin + max(-more, 0), max(more, 0)
    begin = _alike(old, new)
    tail = _alike(old[begin:][::-1], new[begin:][::-1])
    return begin, len(old) - tail, len(new) - tail - begin


def _alike(one: str, other: str) -> int:
    """How many characters at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _within(pasted: Spans, begin: int, end: int) -> Iterator[tuple[int, int]]:
    return (
        (max(first, begin), min(last, end)) for first, last in pasted if max(first, begin) < min(last, end)
    )


class PasteTracker:
    """Follows every change of the prompt's text, by whatever key. `known` are those of earlier lines."""

    def __init__(self, buffer: "Buffer", known: dict[str, Spans]) -> None:
        self._buffer, self._known = buffer, known
        self._text, self._back = "", 1
        self.pasted: Spans = ()
        self._pasting = False
        self._gone: list[Line] = []
        self._cut = (0, "")  # by the last change, where it was typed
        buffer.on_text_changed += lambda _: self._changed()

    def begin(self, line: Line) -> None:
        """The prompt's text was set to that one."""
        self._keep()
        self._text, self.pasted, self._back = line.text, line.pasted, 1

    def paste(self, text: str) -> None:
        self._pasting = True
        try:
            self._buffer.insert_text(text)
        finally:
            self._pasting = False

    def remember(self, line: Line) -> None:
        """For when it is recalled from the history."""
        if line.pasted:
            self._known[line.text] = line.pasted
        else:
            self._known.pop(line.text, None)

    def _changed(self) -> None:
        text = self._buffer.text
        # Counted from the newest line: older ones are still being loaded.
        back = len(self._buffer._working_lines) - self._buffer.working_index
        if back != self._back and self._buffer.cursor_position == 0:  # another line of the history
            if self.pasted:
                self._known[self._text] = self.pasted
            self.pasted = self._known.get(text, ())
        else:
            begin, end, length = difference(self._text, text, self._buffer.cursor_position)
            gone = any(True for _ in _within(self.pasted, begin, end))
            came = text[begin : begin + length]
            by_paste = self._pasting or gone or self._comes_back(begin, came)
            if gone:
                self._keep()
            self._cut = (begin, "" if gone else self._text[begin:end])
            self.pasted = replaced(self.pasted, begin, end, length, by_paste=by_paste)
        self._text, self._back = text, back

    def _keep(self) -> None:
        """The prompt's text as it is, before something of it goes."""
        line = Line(self._text, self.pasted)
        last = self._gone[-1] if self._gone else Line()
        at = last.text.find(line.text)
        if line.pasted and (at < 0 or last.part(at, at + len(line.text)) != line):
            self._gone = [*self._gone, line][-_REMEMBERED:]

    def _comes_back(self, begin: int, text: str) -> bool:
        """Whether that was pasted before: a yank, an undo, a word of an earlier line.

        What only goes on with a word, as a completion does, is part of what was typed.
        """
        at, cut = self._cut
        before = self._text[:begin]
        if begin == at and text.startswith(cut):  # the completion of a word puts it in anew
            before, text = before + cut, text[len(cut) :]
        goes_on = before[-1:].strip() and _ONE_WORD.fullmatch(text)
        text = text.strip()  # a line that vi puts below another has an end more
        if len(text) < 2 or goes_on:
            return False
        here = (Line(self._text, self.pasted), *self._gone)
        earlier = (Line(*each) for each in self._known.items())
        return any(_has_pasted(line, text) for line in (*here, *earlier)) or any(
            map(text.__contains__, _parts(here))
        )


def _has_pasted(line: Line, text: str) -> bool:
    """Whether `text` is anywhere in it, and there not only typed."""
    at = line.text.find(text)
    while at >= 0:
        if not line.typed(at, at + len(text)):
            return True
        at = line.text.find(text, at + 1)
    return False


def _parts(lines: Iterable[Line]) -> Iterator[str]:
    """What was pasted of them; one character says nothing."""
    return (line.text[begin:end] for line in lines for begin, end in line.pasted if end - begin > 1)
