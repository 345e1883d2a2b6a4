"""Grouped attention against transformers' own eager attention: the same bits."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaConfig, GemmaForCausalLM

from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.layers import attention

GEMMA2 = Gemma2Config(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    query_pre_attn_scalar=16,
    sliding_window=12,
    initializer_range=0.3,
)
GEMMA1 = GemmaConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    initializer_range=0.3,
)


def models(kind: str, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    config, family = (GEMMA2, Gemma2ForCausalLM) if kind == "gemma2" else (GEMMA1, GemmaForCausalLM)
    torch.manual_seed(0)
    reference = family._from_config(config, attn_implementation="eager", dtype=dtype).eval()
    ours = family._from_config(config, attn_implementation=attention.register(), dtype=dtype).eval()
    ours.load_state_dict(reference.state_dict())
    return reference, ours


@pytest.mark.parametrize("cache", ["full", "sliding", "static"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["gemma1", "gemma2"])
@torch.inference_mode()
def test_logits_are_those_of_eager_attention(kind: str, dtype: torch.dtype, cache: str) -> None:
    """Prefill past the window, steps of one token, and a second chunk on top."""
    reference, ours = models(kind, dtype)
    ids = torch.randint(0, 300, (1, 60), generator=torch.Generator().manual_seed(1))
    caches = [KVCache(model.config, cache, 64).cache for model in (reference, ours)]
    start = 0
    for count in (20, 1, 1, 1, 17, 1):
        chunk = ids[:, start : start + count]
        expected, got = (
            model(chunk, past_key_values=kept, use_cache=True).logits
            for model, kept in zip((reference, ours), caches, strict=True)
        )
        assert torch.equal(expected, got), f"at token {start}"
        start += count
