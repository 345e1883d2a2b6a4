"""What there is to tell besides the answer, held back while nobody may write on the terminal."""

from collections.abc import Callable
from threading import Event

from localgemma_cli.backends.http.failures import PassingError
from localgemma_cli.backends.http.transport import Cancelled

WAITS = (0.5, 2.0)  # seconds before the second and the third try
_LONGEST_WAIT = 30.0  # seconds; a server that asks for more is not waited for


class Voice:
    """`say` is for everybody, `detail` for `--verbose`; both wait for `open`."""

    def __init__(self, say: Callable[[str], None], detail: Callable[[str], None]) -> None:
        self._say, self._detail = say, detail
        self._held: list[tuple[Callable[[str], None], str]] | None = []

    def say(self, text: str) -> None:
        self._tell(self._say, text)

    def detail(self, text: str) -> None:
        self._tell(self._detail, text)

    def open(self) -> None:
        held, self._held = self._held or [], None
        for tell, text in held:
            tell(text)

    def _tell(self, tell: Callable[[str], None], text: str) -> None:
        if self._held is None:
            tell(text)
        else:
            self._held.append((tell, text))


def wait_out(error: PassingError, tries: int, voice: Voice, cancel: Event) -> None:
    """Wait before the next try, or raise `error` where there is none; Cancelled where the user gave up."""
    if tries > len(WAITS) or (error.after or 0) > _LONGEST_WAIT:
        raise error
    seconds = WAITS[tries - 1] if error.after is None else error.after
    voice.say(f"[{error.message} Trying again in {seconds:.3g} s.]")
    if cancel.wait(seconds):
        raise Cancelled
