"""Keeps the log-probabilities of the tokens of an answer, and of the likeliest ones at each position."""

import torch

from localgemma_cli.backends.scored_token import ScoredToken


class TokenScores:
    """`alternatives`: how many of the likeliest tokens to keep. Only `first` waits for the device."""

    def __init__(self, alternatives: int) -> None:
        self._alternatives = alternatives
        # for each token its id and log-probability [1], then those of the likeliest [alternatives]
        self._kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, token: torch.Tensor, logprobs: torch.Tensor) -> None:
        """Keep what `logprobs` [vocabulary] has for `token` [1] and for the likeliest tokens."""
        top = logprobs.topk(min(self._alternatives, len(logprobs)))
        self._kept.append((token, logprobs[token], top.indices, top.values))

    def first(self, count: int) -> list[ScoredToken]:
        """The first `count` tokens."""
        return [
            ScoredToken(int(token), float(own), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
            for token, own, ids, values in self._kept[:count]
        ]
