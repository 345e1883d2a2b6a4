"""Guesses the next tokens from the text so far, and measures whether guessing saves time.

The model checks all guesses in one forward. Every token is still sampled from the model's own distribution,
in order, so guesses change the speed of an answer but not its text.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Protocol

NGRAM = 3  # tokens that must have occurred together before
LONGEST = 7  # guessed tokens per round: with the known token, a forward has eight rows
_TRIALS = 8  # rounds with guesses to measure before deciding
_PAUSE = 64  # tokens without guesses before the next try
_PLAIN = 3  # rounds without guesses at the start of each answer, to compare with
_LONGEST_PAUSE = 4096  # tokens


class Guesses(Protocol):
    """Proposes tokens to `generate`, which reports how many were right."""

    def propose(self, history: Sequence[int]) -> list[int]:
        """Ids that may come next; may be empty."""
        ...

    def report(self, count: int, length: int) -> None:
        """Report that `count` guessed tokens were right; the history now has `length` tokens."""
        ...


class Payoff:
    """Measures whether guessing saves time: seconds per token in recent rounds with and without guesses.

    A round lasts from one call of `next_round` to the next, so it includes everything an answer waits for.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._plain: deque[tuple[float, int]] = deque(maxlen=_PLAIN)
        self._guessed: deque[tuple[float, int]] = deque(maxlen=_TRIALS)
        self._resting = 0  # tokens left before guessing may resume
        self._pause = _PAUSE
        self._guessing = False
        self._open: tuple[float, int] | None = None  # the round's start time, and the tokens by then

    def begin(self) -> None:
        """Start an answer: the time since the last round was not decoding."""
        self._open = None
        self._resting = max(self._resting, _PLAIN)

    def next_round(self, length: int, able: bool = True) -> bool:
        """Start a round at `length` tokens; whether to guess in it. `able`: whether there is a guess."""
        now = self._clock()
        if self._open is not None:
            self._learn(now - self._open[0], length - self._open[1])
        self._open = now, length
        self._guessing = able and self._resting <= 0
        return self._guessing

    def restart_round(self) -> None:
        """Discard the time since the round began: it went into one-time work."""
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


class PromptLookup:
    """Guesses, for one answer, that the latest tokens are followed by what followed them before.

    Saxena's prompt lookup decoding: github.com/apoorvumang/prompt-lookup-decoding.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        # n-gram -> index of the token after its latest occurrence
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = NGRAM
        self._payoff = Payoff(clock)
        self._payoff.begin()

    def propose(self, history: Sequence[int]) -> list[int]:
        """Up to `LONGEST` ids; empty while guessing does not save time."""
        for end in range(self._indexed, len(history)):
            self._after[tuple(history[end - NGRAM : end])] = end
        self._indexed = max(self._indexed, len(history))
        start = self._after.get(tuple(history[-NGRAM:]))
        guesses = list(history[start : start + LONGEST]) if start is not None else []
        return guesses if self._payoff.next_round(len(history), able=bool(guesses)) else []

    def report(self, count: int, length: int) -> None:
        """Ignored: only the time counts."""


def _per_token(rounds: Sequence[tuple[float, int]]) -> float:
    """Median seconds of a round over its mean tokens: one stall of a terminal or pipe has no effect."""
    return median(seconds for seconds, _ in rounds) / fmean(tokens for _, tokens in rounds)
