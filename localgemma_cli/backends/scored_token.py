"""A token with its log-probability, by ids: what every engine that runs here computes."""

from dataclasses import dataclass

from localgemma_cli.events import TokenLogprob
from localgemma_cli.prompts.tokenizer import Tokenizer


@dataclass(frozen=True)
class ScoredToken:
    """`top`: ids and log-probabilities of the likeliest tokens there, the likeliest first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def describe_token(token: ScoredToken, tokenizer: Tokenizer) -> TokenLogprob:
    """The token with its text, and its alternatives with theirs."""
    data = tokenizer.bytes_of(token.id)
    top = tuple(describe_token(ScoredToken(*each), tokenizer) for each in token.top)
    return TokenLogprob(data.decode("utf-8", "replace"), token.logprob, token.id, tuple(data), top)
