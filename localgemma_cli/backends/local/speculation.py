"""Prompt look-up: guess that what followed these tokens before follows them again, and check that at once.

The idea is Saxena's prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding). Every token is
still drawn from the model's own distribution, in order: a guess changes an answer's speed and not its text.
"""

from collections.abc import Sequence

NGRAM = 3  # tokens that must have stood together before
LONGEST = 7  # guessed tokens; with the one that is certain, eight rows cost a CPU little more than one
_TRIALS = 8  # guesses after which the rate is believed
_PAYS = 0.5  # accepted tokens per guess below which checking costs more than it brings
_PAUSE = 64  # tokens without guesses, then another try


class Lookup:
    """Guesses for one answer; `accepted` is what it learns from."""

    def __init__(self) -> None:
        self._after: dict[
            tuple[int, ...], int
        ] = {}  # where the text after an n-gram begins, its latest place
        self._indexed = NGRAM
        self._guesses = self._hits = 0
        self._resume_at = 0

    def propose(self, history: Sequence[int]) -> list[int]:
        """Up to `LONGEST` ids that may come next; none while guessing does not pay."""
        for end in range(self._indexed, len(history)):
            self._after[tuple(history[end - NGRAM : end])] = end
        self._indexed = max(self._indexed, len(history))
        if len(history) < max(self._resume_at, NGRAM):
            return []
        start = self._after.get(tuple(history[-NGRAM:]))
        return list(history[start : start + LONGEST]) if start is not None else []

    def accepted(self, count: int, length: int) -> None:
        """`count` guessed tokens were right, at a history of `length` tokens."""
        self._guesses += 1
        self._hits += count
        if self._guesses >= _TRIALS and self._hits < _PAYS * self._guesses:
            self._resume_at = length + _PAUSE
            self._guesses = self._hits = 0
