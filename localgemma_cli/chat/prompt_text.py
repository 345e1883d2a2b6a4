"""Text from the prompt that knows which parts were pasted: commands and @paths count only where typed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

Spans = tuple[tuple[int, int], ...]  # [begin, end) in order, none touching the next


@dataclass(frozen=True)
class PromptText:
    """A text from the prompt, or a draft to edit there; `pasted` holds the parts that were not typed."""

    text: str = ""
    pasted: Spans = ()

    def is_typed(self, begin: int, end: int) -> bool:
        """Whether nothing between `begin` and `end` was pasted."""
        return not any(True for _ in spans_within(self.pasted, begin, end))

    def slice(self, begin: int, end: int) -> "PromptText":
        inner = spans_within(self.pasted, begin, end)
        return PromptText(self.text[begin:end], tuple((first - begin, last - begin) for first, last in inner))

    def strip(self, characters: str | None = None) -> "PromptText":
        """As `str.strip`, but removes only what was typed."""
        begin, end = 0, len(self.text)
        while begin < end and self._is_removable(begin, characters):
            begin += 1
        while begin < end and self._is_removable(end - 1, characters):
            end -= 1
        return self.slice(begin, end)

    def map_parts(self, change: Callable[[str], str]) -> "PromptText":
        """Apply `change` to each typed and each pasted part."""
        edges = [0, *(edge for span in self.pasted for edge in span), len(self.text)]
        text = ""
        pasted: list[tuple[int, int]] = []
        for number, (begin, end) in enumerate(pairwise(edges)):
            part = change(self.text[begin:end])
            if number % 2 and part:
                pasted.append((len(text), len(text) + len(part)))
            text += part
        return PromptText(text, tuple(pasted))

    def _is_removable(self, at: int, characters: str | None) -> bool:
        return not self.text[at].strip(characters) and self.is_typed(at, at + 1)


def as_pasted(text: str) -> PromptText:
    """A text that was not typed at this prompt."""
    return PromptText(text, ((0, len(text)),) if text else ())


def spans_within(pasted: Spans, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of the spans between `begin` and `end`."""
    return (
        (max(first, begin), min(last, end)) for first, last in pasted if max(first, begin) < min(last, end)
    )
