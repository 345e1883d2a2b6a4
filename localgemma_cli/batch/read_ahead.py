"""Read an iterator in a thread, a few items ahead, so that waiting for the next one can be stopped."""

from collections.abc import Iterable
from queue import Empty, Queue
from threading import Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")
_AHEAD = 16  # items; a row has at most a few megabytes


class ReadAhead(Generic[Item]):
    """The items of `source`, which a thread reads; `has_ended` once there are no more."""

    def __init__(self, source: Iterable[Item]) -> None:
        self.has_ended = False
        self._source = source
        self._items: Queue[tuple[Item] | BaseException | None] = Queue(_AHEAD)
        self._next: tuple[Item] | None = None
        # a daemon: the end of the program does not wait for an open pipe
        Thread(target=self._read, name="read ahead", daemon=True).start()

    def take(self, seconds: float) -> Item | None:
        """The next item; None if none arrives within `seconds`, or at the end. Raises what reading raised."""
        if not self.wait(seconds):
            return None
        assert self._next is not None  # `wait` returned True
        (item,), self._next = self._next, None
        return item

    def wait(self, seconds: float | None) -> bool:
        """Whether there is a next item, which `take` then returns; waits for ever with None."""
        if self._next is not None or self.has_ended:
            return self._next is not None
        try:
            item = self._items.get(seconds != 0, seconds)
        except Empty:
            return False
        if isinstance(item, BaseException):
            self.has_ended = True
            raise item
        self._next, self.has_ended = item, item is None
        return item is not None

    def _read(self) -> None:
        try:
            for item in self._source:
                self._items.put((item,))
            self._items.put(None)
        except BaseException as error:  # the waiting thread raises it
            self._items.put(error)
