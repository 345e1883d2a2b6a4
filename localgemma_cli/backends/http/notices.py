"""Notices besides the answer, held back until the terminal is free; and the wait before a retry."""

from collections.abc import Callable
from threading import Event

from localgemma_cli.backends.http.server_errors import TransientError
from localgemma_cli.backends.http.transport import ExchangeCancelled

RETRY_SECONDS = (0.5, 2.0)  # before the second and the third attempt
_LONGEST_RETRY_SECONDS = 30.0  # no wait for a server that asks for more


class Notices:
    """Lines for the user: `say` for everybody, `detail` for `--verbose`.

    Both keep their lines until `open` is called.
    """

    def __init__(self, say: Callable[[str], None], detail: Callable[[str], None]) -> None:
        self._say, self._detail = say, detail
        self._held: list[tuple[Callable[[str], None], str]] | None = []

    def say(self, text: str) -> None:
        self._show(self._say, text)

    def detail(self, text: str) -> None:
        self._show(self._detail, text)

    def open(self) -> None:
        held, self._held = self._held or [], None
        for show, text in held:
            show(text)

    def _show(self, show: Callable[[str], None], text: str) -> None:
        if self._held is None:
            show(text)
        else:
            self._held.append((show, text))


def wait_before_retry(error: TransientError, attempts: int, notices: Notices, cancel: Event) -> None:
    """Wait, after so many failed `attempts`; raise `error` after the last one.

    A server's Retry-After replaces the usual wait. Raises ExchangeCancelled once `cancel` is set.
    """
    if attempts > len(RETRY_SECONDS) or (error.retry_after or 0) > _LONGEST_RETRY_SECONDS:
        raise error
    seconds = RETRY_SECONDS[attempts - 1] if error.retry_after is None else error.retry_after
    notices.say(f"[{error.message} Trying again in {seconds:.3g} s.]")
    if cancel.wait(seconds):
        raise ExchangeCancelled
