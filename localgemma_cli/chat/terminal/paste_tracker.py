"""Follows which parts of the text at the prompt were pasted."""

import re
from collections.abc import Iterable, Iterator

from prompt_toolkit.buffer import Buffer

from localgemma_cli.chat.prompt_text import PromptText, Spans, spans_within

_REMEMBERED = 100  # texts that lost a pasted part; the prompt's kill ring holds 60 pieces
_ONE_WORD = re.compile(r"[^\s@]+")


def update_spans(pasted: Spans, begin: int, end: int, length: int, *, by_paste: bool) -> Spans:
    """The spans after the characters from `begin` to `end` are replaced by `length` others."""
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


def find_change(old: str, new: str, cursor: int) -> tuple[int, int, int]:
    """(begin, end, length): `old[begin:end]` was replaced by `length` characters of `new`.

    `cursor` is where the cursor is after the change.
    """
    more = len(new) - len(old)
    begin = cursor - max(more, 0)
    if begin >= 0 and old[:begin] == new[:begin] and old[begin + max(-more, 0) :] == new[cursor:]:
        return begin, begin + max(-more, 0), max(more, 0)
    begin = _common_prefix(old, new)
    tail = _common_prefix(old[begin:][::-1], new[begin:][::-1])
    return begin, len(old) - tail, len(new) - tail - begin


def _common_prefix(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class PasteTracker:
    """Updates `pasted` at every change of the buffer. `known` maps earlier lines to their pasted spans."""

    def __init__(self, buffer: Buffer, known: dict[str, Spans]) -> None:
        self._buffer, self._known = buffer, known
        self._text, self._back = "", 1
        self.pasted: Spans = ()
        self._is_pasting = False
        self._lost: list[PromptText] = []  # texts before a pasted part was removed
        self._cut = (0, "")  # where the last change was, and the typed text it removed
        buffer.on_text_changed += lambda _: self._changed()

    def begin(self, line: PromptText) -> None:
        """Start over with `line` at the prompt."""
        self._remember_lost()
        self._text, self.pasted, self._back = line.text, line.pasted, 1

    def paste(self, text: str) -> None:
        self._is_pasting = True
        try:
            self._buffer.insert_text(text)
        finally:
            self._is_pasting = False

    def remember(self, line: PromptText) -> None:
        """Keep the spans of `line` for when it is recalled from the history."""
        if line.pasted:
            self._known[line.text] = line.pasted
        else:
            self._known.pop(line.text, None)

    def _changed(self) -> None:
        text = self._buffer.text
        # Counted from the newest line, since older ones may still be loading.
        back = len(self._buffer._working_lines) - self._buffer.working_index
        if back != self._back and self._buffer.cursor_position == 0:  # another line of the history
            if self.pasted:
                self._known[self._text] = self.pasted
            self.pasted = self._known.get(text, ())
        else:
            begin, end, length = find_change(self._text, text, self._buffer.cursor_position)
            gone = any(True for _ in spans_within(self.pasted, begin, end))
            came = text[begin : begin + length]
            by_paste = self._is_pasting or gone or self._was_pasted_before(begin, came)
            if gone:
                self._remember_lost()
            self._cut = (begin, "" if gone else self._text[begin:end])
            self.pasted = update_spans(self.pasted, begin, end, length, by_paste=by_paste)
        self._text, self._back = text, back

    def _remember_lost(self) -> None:
        """Remember the text before a pasted part of it is removed."""
        line = PromptText(self._text, self.pasted)
        last = self._lost[-1] if self._lost else PromptText()
        at = last.text.find(line.text)
        if line.pasted and (at < 0 or last.slice(at, at + len(line.text)) != line):
            self._lost = [*self._lost, line][-_REMEMBERED:]

    def _was_pasted_before(self, begin: int, text: str) -> bool:
        """Whether `text` is pasted text that comes back: by a yank, an undo, or from an earlier line.

        Text that only extends a word, as a completion does, counts as typed.
        """
        at, cut = self._cut
        before = self._text[:begin]
        if begin == at and text.startswith(cut):  # a completion replaces the word that it completes
            before, text = before + cut, text[len(cut) :]
        extends_word = before[-1:].strip() and _ONE_WORD.fullmatch(text)
        text = text.strip()  # vi adds a line end when it puts a line below another
        if len(text) < 2 or extends_word:
            return False
        here = (PromptText(self._text, self.pasted), *self._lost)
        earlier = (PromptText(*each) for each in self._known.items())
        return any(_has_pasted(line, text) for line in (*here, *earlier)) or any(
            map(text.__contains__, _pasted_parts(here))
        )


def _has_pasted(line: PromptText, text: str) -> bool:
    """Whether `text` occurs in the line with at least one pasted character."""
    at = line.text.find(text)
    while at >= 0:
        if not line.is_typed(at, at + len(text)):
            return True
        at = line.text.find(text, at + 1)
    return False


def _pasted_parts(lines: Iterable[PromptText]) -> Iterator[str]:
    """The pasted parts of more than one character."""
    return (line.text[begin:end] for line in lines for begin, end in line.pasted if end - begin > 1)
