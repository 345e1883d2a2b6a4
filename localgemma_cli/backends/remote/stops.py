"""Stop strings on our side, for servers that let them through."""

from collections.abc import Iterable, Iterator, Sequence

from localgemma_cli.backends.remote.dialect import Piece


def until_stop(pieces: Iterable[Piece], stops: Sequence[str]) -> Iterator[Piece]:
    """The pieces up to the first stop string, wherever it is cut; what may begin one is held back."""
    held = ""
    for piece in pieces:
        text = held + piece.text
        found = [at for at in map(text.find, stops) if at >= 0]
        if found:
            yield Piece(text[: min(found)], "stop", piece.usage)
            return
        keep = 0 if piece.finish else _beginning(text, stops)
        held = text[len(text) - keep :]
        yield Piece(text[: len(text) - keep], piece.finish, piece.usage)
    if held:
        yield Piece(held)


def _beginning(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` begin a stop string."""
    lengths = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(lengths, default=0)
