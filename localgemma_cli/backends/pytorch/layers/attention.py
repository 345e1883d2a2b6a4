"""Eager attention without its copies: grouped queries share their keys and values where they lie.

The same sums in the same order as transformers' `eager_attention_forward` (modeling_gemma2.py), which first
writes every key and value out once per query head: at 6,000 tokens that moves more bytes than a 2b's weights.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from localgemma_cli.backends.pytorch.kernels import bfloat16 as bfloat16_kernel
from localgemma_cli.backends.pytorch.layers.cpu_linear import is_widened
from localgemma_cli.backends.pytorch.layers.kv_int8 import Int8Keys, Int8Values
from localgemma_cli.planning.plan import LoadPlan

NAME = "eager_grouped"
_WIDE_FROM = 8  # rows; fewer are multiplied as they are, which is bound by reading keys and values


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

    A chunk of a prompt goes one key head at a time: the scores of all would be the peak of memory.
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
        multiply = _ours(length, kv_heads) if has_own_products(query) else _pytorchs
        output = torch.empty_like(grouped)
        step = 1 if length > 1 else kv_heads
        for first in range(0, kv_heads, step):
            some = slice(first, first + step)
            states = grouped[some], key[0, some], value[0, some]
            output[some] = _attend(*states, first, attention_mask, scaling, softcap, multiply)
    return output.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


def has_own_products(states: torch.Tensor) -> bool:
    """Whether bfloat16.c multiplies such heads, [..., d]; it wants each token's values to lie together."""
    if states.dtype != torch.bfloat16 or states.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return is_widened() and bfloat16_kernel.takes(states.shape[-1])


# (x [some, rows, k], keys [some, n, k] or values [some, k, n], the first head's number, whether it is values)
_Multiply = Callable[[torch.Tensor, torch.Tensor, int, bool], torch.Tensor]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    first: int,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    multiply: _Multiply,
) -> torch.Tensor:
    """query [some, rows, d], a row for each query head and token; key and value [some, n, d] -> as query."""
    scores = _capped(multiply(query, key, first, False), mask, scaling, softcap)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return multiply(weights, value, first, True)


def _ours(length: int, heads: int) -> _Multiply:
    def multiply(x: torch.Tensor, other: torch.Tensor, first: int, across: bool) -> torch.Tensor:
        lying = other if other.stride(2) == 1 else other.contiguous()
        return bfloat16_kernel.attended(x, lying, length, first, heads, across)

    return multiply


def _pytorchs(x: torch.Tensor, other: torch.Tensor, _: int, across: bool) -> torch.Tensor:
    """One head at a time: of keys in a larger buffer only a single head's are contiguous, without which it
    takes twenty times as long."""
    columns = other if across else other.mT
    product = x.new_empty(*x.shape[:2], columns.shape[2])
    for head, right in enumerate(columns):
        _multiply(x[head], right, product[head])
    return product


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """left @ right to `out`, by way of float32 where many rows of bfloat16 are slow."""
    if len(left) >= _WIDE_FROM and left.dtype == torch.bfloat16 and is_widened():
        out.copy_(left.float() @ right.float())
    else:
        torch.mm(left, right, out=out)


def _capped(
    scores: torch.Tensor, mask: torch.Tensor | None, scaling: float, softcap: float | None
) -> torch.Tensor:
    """[kv_heads, rows, n], changed in place: scaled, capped and masked."""
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
