"""Grouped attention against transformers' own eager attention."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaConfig, GemmaForCausalLM

from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.kernels.bfloat16 import has_bfloat16_rows
from localgemma_cli.backends.pytorch.layers import attention
from localgemma_cli.backends.pytorch.layers.cpu_linear import is_widened, tune_linears

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
    """Prefill past the window, steps of one token, and a second chunk on top; all the same bits.

    The C extension adds bfloat16's products in another order: there, the same to rounding.
    """
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
        if dtype == torch.bfloat16 and is_widened() and has_bfloat16_rows():
            assert (got - expected).norm() < 0.02 * expected.norm(), f"at token {start}"
        else:
            assert torch.equal(expected, got), f"at token {start}"
        start += count


@pytest.mark.parametrize("kind", ["gemma1", "gemma2"])
@torch.inference_mode()
def test_greedy_tokens_in_float32_are_those_of_transformers(kind: str) -> None:
    reference, ours = models(kind, torch.float32)
    tune_linears(ours)
    ids = torch.randint(0, 300, (1, 40), generator=torch.Generator().manual_seed(3))
    cache = KVCache(ours.config, "full", 128).cache
    answers = [
        model.generate(ids, do_sample=False, min_new_tokens=40, max_new_tokens=40, past_key_values=kept)
        for model, kept in ((reference, None), (ours, cache))
    ]
    assert torch.equal(*answers)


@pytest.mark.parametrize("compact", [False, True], ids=["plain", "compact"])
@pytest.mark.parametrize("kind", ["gemma1", "gemma2"])
@torch.inference_mode()
def test_logits_in_bfloat16_are_as_exact_as_those_of_transformers(kind: str, compact: bool) -> None:
    """Against the same weights in float64: of a prompt, and of steps after it."""
    reference, ours = models(kind, torch.bfloat16)
    tune_linears(ours, compact)
    exact = models(kind, torch.float64)[0]
    exact.load_state_dict(reference.state_dict())
    ids = torch.randint(0, 300, (1, 50), generator=torch.Generator().manual_seed(4))
    runs = [(exact, None), (reference, None), (ours, KVCache(ours.config, "full", 64).cache)]
    logits = []
    for model, cache in runs:
        prompt = model(ids[:, :40], past_key_values=cache, use_cache=True)
        rest = [
            model(ids[:, at : at + 1], past_key_values=prompt.past_key_values, use_cache=True).logits
            for at in range(40, 50)
        ]
        logits.append(torch.cat([prompt.logits, *rest], 1).double())
    errors = [(each - logits[0]).norm() for each in logits[1:]]
    assert errors[1] < 1.2 * errors[0]
