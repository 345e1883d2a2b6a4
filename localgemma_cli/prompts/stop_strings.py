"""Stop strings: an answer ends before the first one that the model writes."""

from collections.abc import Sequence


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
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        self.found = bool(found)
        return self._release(min(found, default=len(self._held) - self._possible_length()))

    def rest(self, text: str) -> str:
        """The end of the answer: the text that was held back, and a last piece."""
        self._held += text
        return self._release(len(self._held))

    @property
    def tokens(self) -> int:
        """The number of tokens completely before the stop string; all of them without one."""
        return sum(end <= self._released for end in self._ends) if self.found else len(self._ends)

    def _possible_length(self) -> int:
        """The length of the longest end of the held text with which a stop string begins."""
        longest = max(map(len, self._stops), default=1) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)

    def _release(self, length: int) -> str:
        released, self._held = self._held[:length], self._held[length:]
        self._released += length
        return released
