"""Eager attention without copies: grouped queries read their shared keys and values in place.

It computes the same as transformers' `eager_attention_forward` (modeling_gemma2.py), which first copies every
key and value for each query head: at 6,000 tokens that moves more bytes than the weights of 2b.
"""

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from localgemma_cli.backends.pytorch.kernels.bfloat16 import bfloat16_rows, has_bfloat16_rows
from localgemma_cli.backends.pytorch.layers.cpu_linear import is_widened
from localgemma_cli.backends.pytorch.layers.kv_int8 import Int8Keys, Int8Values
from localgemma_cli.planning.plan import LoadPlan

NAME = "eager_grouped"
_WIDE_FROM = 8  # rows; for fewer, the bfloat16 product is as fast as reading the keys and values


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | Int8Keys,
    value: torch.Tensor | Int8Values,
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, q, d], key and value [1, kv_heads, n, d], mask [1, 1, q, n] -> [1, q, heads, d].

    A chunk of a prompt is computed one key head at a time: the scores of all heads would raise peak memory.
    """
    batch, heads, length, width = query.shape
    if isinstance(key, Int8Keys) and isinstance(value, Int8Values):
        grouped = query.reshape(len(key.scales), -1, width).contiguous()
        scores = _capped(key.scores(grouped), attention_mask, scaling, softcap)
        output = value.mixed(torch.softmax(scores, dim=-1)).to(query.dtype)
    else:
        assert isinstance(key, torch.Tensor)
        assert isinstance(value, torch.Tensor)
        kv_heads = key.shape[1]
        grouped = query.reshape(kv_heads, -1, width).contiguous()
        output = torch.empty_like(grouped)
        step = 1 if length > 1 else kv_heads
        for first in range(0, kv_heads, step):
            some = slice(first, first + step)
            states = grouped[some], key[0, some], value[0, some]
            output[some] = _attend(*states, attention_mask, scaling, softcap)
    return output.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attend with query [some, rows, d], a row per query head and token, to key and value [some, n, d]."""
    scores = _capped(_multiply_heads(query, key), mask, scaling, softcap)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return _multiply_heads(weights, value.mT)


def _multiply_heads(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Multiply x [some, rows, k] by other [some, n, k] -> [some, rows, n]."""
    widened = x.dtype == torch.bfloat16 and x.device.type == "cpu" and is_widened()
    if widened and other.stride(2) == 1 and has_bfloat16_rows() and not torch.compiler.is_compiling():
        return bfloat16_rows(x.contiguous(), other)
    product = x.new_empty(*x.shape[:2], other.shape[1])
    for head, right in enumerate(other.mT):  # several heads of a larger buffer at once are slow
        if widened and x.shape[1] >= _WIDE_FROM:
            product[head] = x[head].float() @ right.float()
        else:
            torch.mm(x[head], right, out=product[head])
    return product


def _capped(
    scores: torch.Tensor, mask: torch.Tensor | None, scaling: float, softcap: float | None
) -> torch.Tensor:
    """Scale, cap and mask [kv_heads, rows, n] in place."""
    scores.mul_(scaling)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores.view(-1, *mask.shape[-2:]).add_(mask[0])
    return scores


def mask_where_needed(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    **rest: object,
) -> torch.Tensor | None:
    """Return None for one query that sees every key; a preallocated cache's offset is a tensor."""
    if q_length == 1 and isinstance(q_offset, int) and kv_offset + kv_length == q_offset + 1:
        return None
    mask: torch.Tensor | None = eager_mask(
        batch_size, q_length, kv_length, q_offset=q_offset, kv_offset=kv_offset, **rest
    )
    return mask


def implementation(plan: LoadPlan) -> str:
    """Return the plan's attention by transformers' name; on a CPU, eager is the grouped attention above."""
    return register() if plan.attention == "eager" and plan.device == "cpu" else plan.attention


def register() -> str:
    """Register grouped attention with transformers; return the name to load a model with."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, mask_where_needed)
    return NAME
