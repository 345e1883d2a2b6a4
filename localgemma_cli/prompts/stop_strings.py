"""Stop texts: an answer ends where the model begins the next request itself."""

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to a stop text, holding back only what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self._told = 0  # characters
        self._ends: list[int] = []  # per token: the length of the text with it
        self.found = False

    def add(self, text: str) -> str:
        """The text of one more token in, what of it all may be shown out."""
        self._held += text
        self._ends.append(self._told + len(self._held))
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        self.found = bool(found)
        return self._tell(min(found, default=len(self._held) - self._open()))

    def rest(self, text: str) -> str:
        """The end of the answer: what was held back and did not become a stop text, with a last piece."""
        self._held += text
        return self._tell(len(self._held))

    @property
    def tokens(self) -> int:
        """How many tokens lie whole before the stop text; all of them while there is none."""
        return sum(end <= self._told for end in self._ends) if self.found else len(self._ends)

    def _open(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max(map(len, self._stops), default=1) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)

    def _tell(self, length: int) -> str:
        told, self._held = self._held[:length], self._held[length:]
        self._told += length
        return told
