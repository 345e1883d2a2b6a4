"""The interface of every renderer of answers."""

from dataclasses import dataclass
from typing import Protocol

from localgemma_cli.events import Finished


@dataclass(frozen=True)
class Parsed:
    """The value of an answer that had to have one; None is JSON's null."""

    value: object


@dataclass(frozen=True)
class Answer:
    """A complete answer; `thinking` is what the model wrote before it, not included in `text`."""

    text: str
    finished: Finished
    thinking: str = ""
    parsed: Parsed | None = None


class Renderer(Protocol):
    """Writes one answer as it streams: thinking, deltas, then either finish or abort."""

    def thinking(self, text: str) -> None:
        """Write a piece of thinking, before the answer begins."""
        ...

    def delta(self, text: str) -> None:
        """Write the next piece of the answer."""
        ...

    def finish(self, answer: Answer) -> None:
        """The answer is complete."""
        ...

    def abort(self) -> None:
        """End the output cleanly after an error."""
        ...


class TeeRenderer:
    """Shows one answer on the screen and records it. What is seen is recorded, even if the terminal then
    goes; the screen finishes before an error of the record can stop it.
    """

    def __init__(self, screen: Renderer, record: Renderer) -> None:
        self._screen, self._record = screen, record

    def thinking(self, text: str) -> None:
        self._record.thinking(text)
        self._screen.thinking(text)

    def delta(self, text: str) -> None:
        self._record.delta(text)
        self._screen.delta(text)

    def finish(self, answer: Answer) -> None:
        self._screen.finish(answer)
        self._record.finish(answer)

    def abort(self) -> None:
        self._screen.abort()
        self._record.abort()
