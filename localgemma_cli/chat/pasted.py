"""What at the prompt was typed, and what only pasted: pasted text is text, whatever it looks like."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.buffer import Buffer

Spans = tuple[tuple[int, int], ...]  # [begin, end) in order, none touching the next
_REMEMBERED = 60  # pasted pieces that were cut out, as many as the prompt's kill ring holds


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
        self._text, self._index = "", 0
        self.pasted: Spans = ()
        self._pasting = False
        self._cut: list[str] = []
        buffer.on_text_changed += lambda _: self._changed()

    def begin(self, line: Line) -> None:
        """The prompt's text was set to that one."""
        self._text, self.pasted, self._index = line.text, line.pasted, 0

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
        text, index = self._buffer.text, self._buffer.working_index
        if index != self._index and self._buffer.cursor_position == 0:  # another line of the history
            if self.pasted:
                self._known[self._text] = self.pasted
            self.pasted = self._known.get(text, ())
        else:
            begin, end, length = difference(self._text, text, self._buffer.cursor_position)
            gone = list(_within(self.pasted, begin, end))
            came = text[begin : begin + length]
            by_paste = self._pasting or bool(gone) or self._is_cut_out(came)
            self._cut = [*self._cut, *(self._text[first:last] for first, last in gone)][-_REMEMBERED:]
            self.pasted = replaced(self.pasted, begin, end, length, by_paste=by_paste)
        self._text, self._index = text, index

    def _is_cut_out(self, text: str) -> bool:
        """Whether what was cut out comes back: a yank, or an undo."""
        return len(text) > 1 and any(piece in text for piece in self._cut if len(piece) > 1)
