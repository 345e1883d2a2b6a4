"""Gemma 2's attention for training on a CPU: the reference's result without its full square of scores."""

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

TRAINING_ATTENTION = "localgemma_demo_training"

# A block of queries sees only the keys at or before its end, and in a sliding layer only the window's.
BLOCK = 128


def causal_block(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, first: int, window: int | None, cap: float
) -> torch.Tensor:
    """query (batch, heads, block, dim) from position `first`; key, value up to the block's end."""
    last = first + query.shape[2]
    begin = 0 if window is None else max(0, first - window + 1)
    scores = query @ key[:, :, begin:last].transpose(-1, -2)
    scores = torch.tanh(scores / cap) * cap
    rows = torch.arange(first, last)[:, None]
    columns = torch.arange(begin, last)[None, :]
    hidden = columns > rows
    if window is not None:
        hidden |= columns <= rows - window
    scores = scores.masked_fill(hidden, float("-inf"))
    return functional.softmax(scores, dim=-1) @ value[:, :, begin:last]


def training_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Rows are padded on the right only, so causality is all the mask there is."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    query = query * scaling
    blocks = [
        causal_block(query[:, :, first : first + BLOCK], key, value, first, sliding_window, softcap)
        for first in range(0, query.shape[2], BLOCK)
    ]
    return torch.cat(blocks, dim=2).transpose(1, 2).contiguous(), None


def no_mask(*_: object, **__: object) -> None:
    """The attention above needs none."""
    return


def register_training_attention() -> None:
    AttentionInterface.register(TRAINING_ATTENTION, training_attention)
    AttentionMaskInterface.register(TRAINING_ATTENTION, no_mask)
