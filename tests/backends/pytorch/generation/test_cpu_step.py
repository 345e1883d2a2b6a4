"""The fast step of one token on a CPU against transformers' forward on the same weights; its fallbacks."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
)

from localgemma_cli.backends.pytorch.generation import cpu_step_support
from localgemma_cli.backends.pytorch.generation.cpu_step import CpuStep
from localgemma_cli.backends.pytorch.generation.cpu_step_support import find_step_functions, make_cpu_step
from localgemma_cli.backends.pytorch.generation.decode import forward, make_step
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.kernels.library import variants
from localgemma_cli.backends.pytorch.layers import attention
from localgemma_cli.backends.pytorch.layers.cpu_linear import replace_linears, tune_linears
from localgemma_cli.backends.pytorch.layers.grouped import GroupedLinear
from localgemma_cli.backends.pytorch.weights.groups import pack_groups
from localgemma_cli.backends.pytorch.weights.quantize_grouped import quantize_rows

pytestmark = pytest.mark.skipif(not variants(), reason="needs the C extension for this processor")
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 72,
    "intermediate_size": 104,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
}
WINDOW = {"query_pre_attn_scalar": 10, "sliding_window": 12}
FAMILIES = {
    "gemma1": (GemmaForCausalLM, GemmaConfig(**SHAPE)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SHAPE, **WINDOW, attn_logit_softcapping=3.0)),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**SHAPE, **WINDOW, final_logit_softcapping=5.0)),
}
EVEN = {**SHAPE, "hidden_size": 64, "intermediate_size": 96}  # which groups of 32 divide
FAMILIES["even"] = (Gemma3ForCausalLM, Gemma3TextConfig(**EVEN, **WINDOW))


def model_of(kind: str, dtype: torch.dtype = torch.bfloat16, name: str | None = None) -> Any:
    family, config = FAMILIES[kind]
    torch.manual_seed(0)
    model = family._from_config(config, attn_implementation=name or attention.register(), dtype=dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms begin at zero
            parameter.data += torch.rand_like(parameter)
    return model


def plain_step(model: Any) -> Callable[..., Tensor]:
    return lambda token, cache: forward(model, token, cache)


@pytest.mark.parametrize(
    ("kind", "compact"),
    [("gemma1", None), ("gemma1", False), ("gemma2", False), ("gemma2", True), ("gemma3", True)],
)
@pytest.mark.parametrize("cache", ["full", "int8"])
@torch.inference_mode()
def test_logits_are_those_of_transformers_forward(kind: str, cache: str, compact: bool | None) -> None:
    """Steps past the window and past a growth of the buffers, with a prompt in between."""
    model = model_of(kind)
    if compact is not None:
        tune_linears(model, compact)
    step = make_step(model, "none")
    assert isinstance(step, CpuStep)
    ids = torch.randint(0, 300, (1, 300), generator=torch.Generator().manual_seed(1))
    caches = [KVCache(model.config, cache, 512).cache for _ in range(2)]
    start = 0
    for count in (9, *(1,) * 8, 230, *(1,) * 14):
        chunk = ids[:, start : start + count]
        got = (step if count == 1 else plain_step(model))(chunk, caches[0])
        expected = forward(model, chunk, caches[1])
        assert (got - expected).norm() < 0.01 * expected.norm(), f"at token {start}"
        start += count
    assert [layer.length for layer in caches[0].layers] == [start] * 4


@pytest.mark.parametrize("kind", FAMILIES)
@torch.inference_mode()
def test_a_roll_back_is_followed(kind: str) -> None:
    model = model_of(kind)
    step, kv = make_step(model, "none"), KVCache(model.config, "full", 512)
    kept: list[list[Tensor]] = []
    for _ in range(2):
        with kv.appending(range(20)) as cache:
            forward(model, torch.arange(20)[None], cache)
        logits = []
        for token in range(20, 40):
            with kv.appending([token]) as cache:
                logits.append(step(torch.tensor([[token]]), cache))
        kept.append(logits)
        kv.truncate(0)
    assert all(map(torch.equal, *kept))


def quantize_linears(model: Any) -> None:
    """Linear layers in int4, and the head in int8, as the preset `memory` has them."""

    def quantized(linear: nn.Linear) -> nn.Module:
        rows = nn.functional.pad(linear.weight.detach().float(), (0, 0, 0, -linear.out_features % 32))
        groups = quantize_rows(rows, 8 if linear is model.lm_head else 4)
        packed = pack_groups(groups.levels, groups.scales, groups.offsets)
        return GroupedLinear(packed, groups.factors, linear.out_features)

    replace_linears(model, quantized)


TOGETHER = [
    ("gemma1", "plain", "full"),
    ("gemma2", "compact", "full"),
    ("gemma2", "plain", "int8"),
    ("even", "grouped", "full"),
    ("even", "grouped", "int8"),
]


def stepped(kind: str, weights: str) -> tuple[Any, CpuStep]:
    model = model_of(kind)
    if weights == "grouped":
        quantize_linears(model)
    tune_linears(model, weights == "compact")
    step = make_step(model, "none")
    assert isinstance(step, CpuStep)
    return model, step


def filled(model: Any, cache: str, length: int) -> KVCache:
    kv = KVCache(model.config, cache, 512)
    with kv.appending(range(length)) as layers:
        forward(model, torch.arange(length)[None], layers)
    return kv


@pytest.mark.parametrize(("kind", "weights", "cache"), TOGETHER)
@torch.inference_mode()
def test_rows_of_different_lengths_have_the_bits_of_one_row(kind: str, weights: str, cache: str) -> None:
    """Below the window, above it, and at a growth of the buffers; rows come and go."""
    model, step = stepped(kind, weights)
    lengths = (3, 20, 255, 9, 130, 1, 60, 256)
    alone, together = ([filled(model, cache, length).cache for length in lengths] for _ in range(2))
    for count, token in ((8, 1), (3, 50), (5, 90), (1, 7), (2, 200)):
        tokens = range(token, token + count)
        expected = [
            step(torch.tensor([[each]]), one) for each, one in zip(tokens, alone[-count:], strict=True)
        ]
        got = step.step_rows(tokens, together[-count:])
        assert torch.equal(got, torch.cat(expected))
    assert [each.layers[0].length for each in together] == [each.layers[0].length for each in alone]


@pytest.mark.parametrize(("kind", "weights", "cache"), TOGETHER)
@torch.inference_mode()
def test_several_tokens_of_a_text_have_the_bits_of_one_after_the_other(
    kind: str, weights: str, cache: str
) -> None:
    model, step = stepped(kind, weights)
    for length in (3, 252):
        one, other = (filled(model, cache, length).cache for _ in range(2))
        tokens = torch.arange(40, 48)[None]
        expected = torch.cat([step(tokens[:, index : index + 1], one) for index in range(8)])
        assert torch.equal(step(tokens, other), expected)
        assert torch.equal(step(tokens[:, :1], other), step(tokens[:, :1], one))


def hook(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def wrap(model: Any) -> None:
    up = model.model.layers[1].mlp
    up.forward = up.forward


def other_norm(model: Any) -> None:
    class OtherRMSNorm(type(model.model.norm)):
        pass

    model.model.layers[0].input_layernorm.__class__ = OtherRMSNorm


@pytest.mark.parametrize("change", [hook, wrap, other_norm])
def test_a_model_that_was_changed_keeps_transformers_forward(change: Callable[[Any], None]) -> None:
    model = model_of("gemma2")
    assert isinstance(make_step(model, "none"), CpuStep)
    change(model)
    assert not isinstance(make_step(model, "none"), CpuStep)


def test_other_dtypes_attentions_and_caches_keep_transformers_forward() -> None:
    for other in (model_of("gemma2", torch.float32), model_of("gemma2", name="eager")):
        assert not isinstance(make_step(other, "none"), CpuStep)
    model, used = model_of("gemma2"), []

    def plain(token: Tensor, cache: Any) -> Tensor:
        used.append(cache)
        return forward(model, token, cache)

    step, cache = make_cpu_step(model, plain), KVCache(model.config, "sliding", 512).cache
    with torch.inference_mode():
        forward(model, torch.arange(20)[None], cache)
        step(torch.tensor([[3]]), cache)
    assert used == [cache]


@torch.inference_mode()
def test_a_failure_in_the_middle_of_a_step_costs_one_line_and_no_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = model_of("gemma2")
    functions = dict(find_step_functions(type(model)) or {})
    calls = []

    def attend(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 6:  # in the second layer of the second token
            raise OSError("no kernel")
        right(*arguments)

    right, functions["attend_rows"] = functions["attend_rows"], attend
    step = CpuStep(model, functions, plain_step(model))
    caches = [KVCache(model.config, "full", 512).cache for _ in range(2)]
    for cache in caches:
        forward(model, torch.arange(20)[None], cache)
    with caplog.at_level(logging.WARNING):
        for token in (7, 8, 9):
            got, expected = (
                each(torch.tensor([[token]]), cache)
                for each, cache in zip((step, plain_step(model)), caches, strict=True)
            )
            assert (got - expected).norm() < 0.01 * expected.norm()
    assert [record.getMessage() for record in caplog.records] == [
        "localgemma: the fast decoding step failed, continuing without it (slower): no kernel"
    ]


def test_c_functions_that_are_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu_step_support.bind_step

    def without_gate(variant: str) -> dict[str, Any]:
        return {**right(variant), "gate": lambda *_: None}

    monkeypatch.setattr(cpu_step_support, "bind_step", without_gate)
    assert find_step_functions.__wrapped__(Gemma2ForCausalLM) is None
