"""Filters over the text of an answer: cut at stop strings, join surrogate pairs, mask the API key."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from localgemma_cli.backends.http.dialect import Piece
from localgemma_cli.backends.http.transport import ExchangeCancelled
from localgemma_cli.errors import EndpointError
from localgemma_cli.prompts.stop_strings import partial_match_length, releasable_length
from localgemma_cli.redaction import MASK
from localgemma_cli.text import repair_surrogates


def cut_at_stop(pieces: Iterable[Piece], stops: Sequence[str]) -> Iterator[Piece]:
    """Yield the pieces up to the first stop string, which may be split over several pieces.

    Text that may be the start of a stop string is held back until the next piece decides.
    """
    held = ""
    for piece in pieces:
        text = held + piece.text
        length, found = releasable_length(text, stops)
        if found:
            yield replace(piece, text=text[:length], finish="stop")
            return
        if piece.finish:
            length = len(text)
        held = text[length:]
        yield replace(piece, text=text[:length])
    if held:
        yield Piece(held)


def join_surrogates(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Join the two halves of a character, also from different pieces; a lone half becomes U+FFFD."""
    return _filter_text(pieces, _split_surrogates)


def mask_secret(pieces: Iterable[Piece], secret: str) -> Iterator[Piece]:
    """Replace `secret` by a mask, also where it is split over several pieces."""

    def masked(text: str, ends: bool) -> tuple[str, str]:
        text = text.replace(secret, MASK)
        at = len(text) if ends else len(text) - partial_match_length(text, (secret,))
        return text[:at], text[at:]

    return _filter_text(pieces, masked)


def _filter_text(pieces: Iterable[Piece], cut: Callable[[str, bool], tuple[str, str]]) -> Iterator[Piece]:
    """Apply `cut(text, ends)` to the text and to the thinking of each piece.

    `cut` returns the text to pass on and the rest to hold back until the next piece.
    """
    text = thinking = ""
    try:
        for piece in pieces:
            ends = piece.finish is not None
            ready, text = cut(text + piece.text, ends)
            ready_thinking, thinking = cut(thinking + piece.thinking, ends)
            yield replace(piece, text=ready, thinking=ready_thinking)
    except (EndpointError, ExchangeCancelled):
        if text or thinking:  # a partial answer is kept
            yield Piece(cut(text, True)[0], thinking=cut(thinking, True)[0])
        raise
    if text or thinking:
        yield Piece(cut(text, True)[0], thinking=cut(thinking, True)[0])


def _split_surrogates(text: str, ends: bool) -> tuple[str, str]:
    """The repaired text, and the high surrogate at its end that waits for its low one."""
    waits = "" if ends or not "\ud800" <= text[-1:] <= "\udbff" else text[-1]
    return repair_surrogates(text[: len(text) - len(waits)]), waits
