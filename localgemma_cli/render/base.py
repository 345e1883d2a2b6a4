"""What every writer of answers can do."""

from dataclasses import dataclass
from typing import Protocol

from localgemma_cli.events import Finished


@dataclass(frozen=True)
class Answer:
    """One whole answer; `thinking` came before it and is no part of it."""

    text: str
    finished: Finished
    thinking: str = ""


class Renderer(Protocol):
    def thinking(self, text: str) -> None:
        """What is thought before the answer begins."""
        ...

    def delta(self, text: str) -> None: ...

    def finish(self, answer: Answer) -> None: ...

    def abort(self) -> None:
        """An error ends the answer: leave the stream in order."""
        ...


class Both:
    """One answer to two places, the second of which must not keep the first from being in order."""

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
