"""The log-probabilities of tokens that are given instead of sampled."""

from collections.abc import Iterator, Sequence
from threading import Event as Cancel

import torch
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.generation.decode import forward, prefill
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.planning.memory import PREFILL_CHUNK

_MOST_LOGITS = 2**25  # numbers, 128 MB in float32: how many are computed at a time


@torch.inference_mode()
def score_tokens(
    model: PreTrainedModel,
    kv: KVCache,
    ids: Sequence[int],
    first: int,
    ends: frozenset[int] = frozenset(),
) -> list[float]:
    """The natural logarithms of the probabilities of `ids` from index `first`, which is at least 1.

    With `ends`, there is one more: of any of these tokens after the last one. What `kv` shares with `ids` is
    not computed again.
    """
    scores: list[float] = []
    for logits in _predictions(model, kv, ids if ends else ids[:-1], first):
        logprobs = logits.log_softmax(dim=-1)
        start = first + len(scores)
        given = torch.tensor(ids[start : start + len(logits)], dtype=torch.int64, device=logits.device)
        scores += logprobs[: len(given)].gather(1, given[:, None])[:, 0].tolist()
        if len(given) < len(logits):
            scores.append(float(logprobs[-1, sorted(ends)].logsumexp(dim=0)))
    return scores


def _predictions(
    model: PreTrainedModel, kv: KVCache, ids: Sequence[int], first: int
) -> Iterator[torch.Tensor]:
    """Yield the logits [n, vocabulary] that predict `ids` from index `first`, and a token after the last."""
    device: torch.device = model.device
    kv.reuse(ids[:first])
    prefill(model, kv, ids[: first - 1], device, Cancel())
    kv.reserve(len(ids))
    rows = max(1, min(PREFILL_CHUNK, _MOST_LOGITS // model.config.get_text_config().vocab_size))
    for start in range(first - 1, len(ids), rows):
        chunk = ids[start : start + rows]
        with kv.appending(chunk) as cache:
            logits = forward(model, torch.tensor([chunk], device=device), cache, len(chunk))
        yield logits
