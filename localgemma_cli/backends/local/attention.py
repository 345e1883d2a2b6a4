"""Eager attention without its copies: grouped queries share their keys and values where they lie.

The same sums in the same order as transformers' `eager_attention_forward` (modeling_gemma2.py), which first
writes every key and value out once per query head: at 6,000 tokens that moves more bytes than a 2b's weights.
"""

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from localgemma_cli.planning.plan import LoadPlan

NAME = "eager_grouped"


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, q, d], key and value [1, kv_heads, n, d], mask [1, 1, q, n] -> [1, q, heads, d]."""
    batch, heads, length, width = query.shape
    kv_heads, tokens = key.shape[1], key.shape[2]
    rows = heads // kv_heads * length
    scores = torch.matmul(query.reshape(batch, kv_heads, rows, width), key.transpose(2, 3)).mul_(scaling)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if attention_mask is not None:
        scores.view(batch, heads, length, tokens).add_(attention_mask)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.matmul(weights, value).view(batch, heads, length, width)
    return output.transpose(1, 2).contiguous(), None


def mask_where_needed(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    **rest: object,
) -> torch.Tensor | None:
    """None for one query that sees every key it is given; a preallocated cache's offset is a tensor."""
    if q_length == 1 and isinstance(q_offset, int) and kv_offset + kv_length == q_offset + 1:
        return None
    mask: torch.Tensor | None = eager_mask(
        batch_size, q_length, kv_length, q_offset=q_offset, kv_offset=kv_offset, **rest
    )
    return mask


def implementation(plan: LoadPlan) -> str:
    """The plan's attention in transformers' words; on a CPU eager means ours, which is equal bit for bit."""
    return register() if plan.attention == "eager" and plan.device == "cpu" else plan.attention


def register() -> str:
    """Make it known to transformers; the name to load a model with."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, mask_where_needed)
    return NAME
