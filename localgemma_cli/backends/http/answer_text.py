"""The answer's text put in order on our side: stop strings, characters cut in two, the key left out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from localgemma_cli.backends.http.dialect import Piece
from localgemma_cli.backends.http.transport import Cancelled
from localgemma_cli.errors import EndpointError
from localgemma_cli.redaction import MASK
from localgemma_cli.text import repair_surrogates


def until_stop(pieces: Iterable[Piece], stops: Sequence[str]) -> Iterator[Piece]:
    """The pieces up to the first stop string, wherever it is cut; what may begin one is held back."""
    held = ""
    for piece in pieces:
        text = held + piece.text
        found = [at for at in map(text.find, stops) if at >= 0]
        if found:
            yield replace(piece, text=text[: min(found)], finish="stop")
            return
        keep = 0 if piece.finish else _beginning(text, stops)
        held = text[len(text) - keep :]
        yield replace(piece, text=text[: len(text) - keep])
    if held:
        yield Piece(held)


def well_formed(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces as text that can be written: the halves of a character joined, a lone half as U+FFFD."""
    return _held_back(pieces, _joined)


def without(pieces: Iterable[Piece], secret: str) -> Iterator[Piece]:
    """The pieces with a mask in the place of `secret`, wherever it is cut."""

    def masked(text: str, ends: bool) -> tuple[str, str]:
        text = text.replace(secret, MASK)
        at = len(text) if ends else len(text) - _beginning(text, (secret,))
        return text[:at], text[at:]

    return _held_back(pieces, masked)


def _held_back(pieces: Iterable[Piece], cut: Callable[[str, bool], tuple[str, str]]) -> Iterator[Piece]:
    """Text and thinking, each by `cut(text, ends)`: what can be said of it, and what waits for more."""
    text = thinking = ""
    try:
        for piece in pieces:
            ends = piece.finish is not None
            said, text = cut(text + piece.text, ends)
            thought, thinking = cut(thinking + piece.thinking, ends)
            yield replace(piece, text=said, thinking=thought)
    except (EndpointError, Cancelled):
        if text or thinking:  # what came counts
            yield Piece(cut(text, True)[0], thinking=cut(thinking, True)[0])
        raise
    if text or thinking:
        yield Piece(cut(text, True)[0], thinking=cut(thinking, True)[0])


def _joined(text: str, ends: bool) -> tuple[str, str]:
    """What can be said of `text`, and the first half of a character at its end that waits for the second."""
    waits = "" if ends or not "\ud800" <= text[-1:] <= "\udbff" else text[-1]
    said = text[: len(text) - len(waits)]
    return repair_surrogates(said), waits


def _beginning(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` begin a stop string."""
    lengths = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(lengths, default=0)
