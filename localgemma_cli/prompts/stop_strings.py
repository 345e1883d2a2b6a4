"""Stop strings: an answer ends before the first one that the model writes."""

from collections.abc import Sequence


def releasable_length(text: str, stops: Sequence[str]) -> tuple[int, bool]:
    """How many characters of `text` surely belong to the answer, and whether a stop string follows them."""
    found = [at for at in map(text.find, stops) if at >= 0]
    return (min(found), True) if found else (len(text) - partial_match_length(text, stops), False)


def partial_match_length(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the start of a stop string."""
    lengths = (
        size
        for stop in stops
        for size in range(1, min(len(stop), len(text) + 1))  # a stop string may be a megabyte long
        if text.endswith(stop[:size])
    )
    return max(lengths, default=0)


class StopStrings:
    """Passes text through up to a stop string; holds back only the beginning of a possible one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self._released = 0  # characters
        self._ends: list[int] = []  # for each token: length of the text up to its end
        self.found = False

    def add(self, text: str) -> str:
        """Add the text of one token; returns the text that can be shown now."""
        self._held += text
        self._ends.append(self._released + len(self._held))
        length, self.found = releasable_length(self._held, self._stops)
        return self._release(length)

    def rest(self, text: str) -> str:
        """The end of the answer: the text that was held back, and a last piece."""
        self._held += text
        return self._release(len(self._held))

    @property
    def tokens(self) -> int:
        """The number of tokens completely before the stop string; all of them without one."""
        return sum(end <= self._released for end in self._ends) if self.found else len(self._ends)

    def _release(self, length: int) -> str:
        released, self._held = self._held[:length], self._held[length:]
        self._released += length
        return released
