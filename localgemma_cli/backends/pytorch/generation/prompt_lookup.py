"""Guesses at the next tokens, which the model checks in one forward, and when they are worth their time.

Every token is still drawn from the model's own distribution, in order: a guess changes an answer's speed and
not its text.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Protocol

NGRAM = 3  # tokens that must have stood together before
LONGEST = 7  # guessed tokens; with the one that is certain, eight rows
_TRIALS = 8  # guesses after which their time is believed
_PAUSE = 64  # tokens without guesses, then another try
_PLAIN = 3  # rounds without guesses at the start of each answer, to measure against
_LONGEST_PAUSE = 4096  # tokens


class Guesses(Protocol):
    """Where `generate` gets its guesses; `accepted` tells what became of those that were checked."""

    def propose(self, history: Sequence[int]) -> list[int]:
        """Ids that may come next, or none."""
        ...

    def accepted(self, count: int, length: int) -> None:
        """`count` guessed tokens were right, at a history of `length` tokens."""
        ...


class Payoff:
    """Whether guessing saves time: seconds per token of the latest rounds with guesses and without.

    A round reaches from one call of `next_round` to the next, so it holds all that an answer waits for.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._plain: deque[tuple[float, int]] = deque(maxlen=_PLAIN)
        self._guessed: deque[tuple[float, int]] = deque(maxlen=_TRIALS)
        self._resting = 0  # tokens still to come without guesses
        self._pause = _PAUSE
        self._guessing = False
        self._open: tuple[float, int] | None = None  # when the round began, and at how many tokens

    def begin(self) -> None:
        """A new answer: what passed since the last round was not decoding."""
        self._open = None
        self._resting = max(self._resting, _PLAIN)

    def next_round(self, length: int, able: bool = True) -> bool:
        """Whether to guess in the round that begins at `length` tokens; `able`: whether there is a guess."""
        now = self._clock()
        if self._open is not None:
            self._learn(now - self._open[0], length - self._open[1])
        self._open = now, length
        self._guessing = able and self._resting <= 0
        return self._guessing

    def restart_round(self) -> None:
        """Forget the time since the round began: it was spent on what is done once."""
        if self._open is not None:
            self._open = self._clock(), self._open[1]

    def _learn(self, seconds: float, tokens: int) -> None:
        if not self._guessing:
            self._plain.append((seconds, tokens))
            self._resting -= tokens
            return
        self._guessed.append((seconds, tokens))
        if len(self._guessed) < _TRIALS:
            return
        if _per_token(self._guessed) < _per_token(self._plain):
            self._pause = _PAUSE
        else:
            self._resting = self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._guessed.clear()


class Lookup:
    """Guesses that what followed these tokens before follows them again; for one answer.

    The idea is Saxena's prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding).
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        # by n-gram, where the text after its latest place begins
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = NGRAM
        self._payoff = Payoff(clock)
        self._payoff.begin()

    def propose(self, history: Sequence[int]) -> list[int]:
        """Up to `LONGEST` ids that may come next; none while guessing does not pay."""
        for end in range(self._indexed, len(history)):
            self._after[tuple(history[end - NGRAM : end])] = end
        self._indexed = max(self._indexed, len(history))
        start = self._after.get(tuple(history[-NGRAM:]))
        guesses = list(history[start : start + LONGEST]) if start is not None else []
        return guesses if self._payoff.next_round(len(history), able=bool(guesses)) else []

    def accepted(self, count: int, length: int) -> None:
        """The clock tells what they were worth."""


def _per_token(rounds: Sequence[tuple[float, int]]) -> float:
    """Seconds; the median round stands for all, as one in which a terminal or a pipe stalled says nothing."""
    return median(seconds for seconds, _ in rounds) / fmean(tokens for _, tokens in rounds)
