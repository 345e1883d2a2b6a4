"""The interface of every renderer of answers."""

from dataclasses import dataclass
from typing import Protocol

from localgemma_cli.events import Finished


@dataclass(frozen=True)
class Answer:
    """A complete answer; `thinking` is what the model wrote before it, not included in `text`."""

    text: str
    finished: Finished
    thinking: str = ""


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
    """Sends one answer to two renderers. The first finishes before an error of the second can stop it."""

    def __init__(self, first: Renderer, second: Renderer) -> None:
        self._first, self._second = first, second

    def thinking(self, text: str) -> None:
        self._first.thinking(text)
        self._second.thinking(text)

    def delta(self, text: str) -> None:
        self._first.delta(text)
        self._second.delta(text)

    def finish(self, answer: Answer) -> None:
        self._first.finish(answer)
        self._second.finish(answer)

    def abort(self) -> None:
        self._first.abort()
        self._second.abort()
