"""How well a model predicts a text: perplexity and bits per byte, and the windows over a long text."""

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class TextScore:
    """`logprob`: the natural logarithm of the probability of the tokens; `bytes`: of the text in UTF-8."""

    tokens: int
    bytes: int
    logprob: float

    def __add__(self, other: "TextScore") -> "TextScore":
        return TextScore(self.tokens + other.tokens, self.bytes + other.bytes, self.logprob + other.logprob)

    @property
    def perplexity(self) -> float:
        return math.exp(-self.logprob / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        return -self.logprob / math.log(2) / self.bytes


@dataclass(frozen=True)
class Window:
    """The tokens from `start` to `end` are read together; those from `first` on are scored."""

    start: int
    first: int
    end: int


def text_windows(tokens: int, size: int, stride: int) -> Iterator[Window]:
    """Windows of at most `size` tokens that score each token once; each after the first adds `stride`."""
    end = min(size, tokens)
    yield Window(0, 0, end)
    while end < tokens:
        first, end = end, min(end + stride, tokens)
        yield Window(max(end - size, 0), first, end)
