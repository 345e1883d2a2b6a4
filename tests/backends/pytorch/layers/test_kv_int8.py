"""The KV cache in 8 bits against the same attention over plain keys and values."""

import pytest
import torch
from support.models import DEMO, demo_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from localgemma_cli.backends.pytorch.generation.kv_cache import Int8Layer, KVCache
from localgemma_cli.backends.pytorch.layers import kv_int8 as int8_states
from localgemma_cli.backends.pytorch.layers.attention import grouped_attention, register
from localgemma_cli.backends.pytorch.layers.kv_int8 import MOST_TOKENS, Int8Keys, quantize_states

HEADS, KV_HEADS, WIDTH = 6, 3, 32
CONTEXT = 1024


@pytest.fixture(autouse=True, params=[False, True], ids=["PyTorch's", "ours"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which kernel reads keys and values."""
    if not request.param:
        monkeypatch.setattr(int8_states, "has_int8_rows", lambda: False)
    elif not int8_states.has_int8_rows():
        pytest.skip("needs the C extension for this processor")


def states(tokens: int, seed: int, heads: int = KV_HEADS) -> torch.Tensor:
    return torch.randn(1, heads, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def filled(window: int | None, counts: tuple[int, ...]) -> tuple[Int8Layer, torch.Tensor, torch.Tensor]:
    """A layer that read pieces of such lengths, and the keys and values that it read."""
    layer = Int8Layer(window)
    pieces = [(states(count, 2 * n), states(count, 2 * n + 1)) for n, count in enumerate(counts)]
    for keys, values in pieces:
        layer.update(keys, values)
    return layer, torch.cat([keys for keys, _ in pieces], 2), torch.cat([values for _, values in pieces], 2)


def test_a_number_is_off_by_at_most_half_a_step_and_its_scale_by_a_bfloat16() -> None:
    given = states(50, 0)
    levels, scales = quantize_states(given)
    error = (levels * scales.float().unsqueeze(-1) - given).abs().amax(-1)
    assert (error <= given.abs().amax(-1) * (0.5 / 127 + 2**-8)).all()


def test_a_token_of_zeros_stays_zeros() -> None:
    levels, scales = quantize_states(torch.zeros(1, 1, 1, WIDTH))
    assert not levels.any()
    assert scales.isfinite().all()


@pytest.mark.parametrize("softcap", [None, 50.0])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("asked", [1, 3, MOST_TOKENS])
def test_attention_is_that_over_plain_keys_and_values_within_rounding(
    asked: int, window: int | None, softcap: float | None
) -> None:
    """Past the window and past a growth of the buffers, one token and several."""
    layer, keys, values = filled(window, (300, 1, 1, 20, 1))
    query, key, value = states(asked, 90, HEADS), states(asked, 91), states(asked, 92)
    size, first = layer.get_mask_sizes(asked)
    ours = layer.update(key, value)
    assert isinstance(ours[0], Int8Keys)
    plain = (torch.cat([each, new], 2)[:, :, first:] for each, new in ((keys, key), (values, value)))
    mask = torch.full((1, 1, asked, size), torch.finfo(torch.float32).min).triu(size - asked + 1)
    got, expected = (
        grouped_attention(torch.nn.Module(), query, *both, mask, WIDTH**-0.5, softcap)[0]
        for both in (ours, tuple(plain))
    )
    assert got.shape == expected.shape == (1, asked, HEADS, WIDTH)
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_long_chunk_sees_unpacked_states_of_all_that_stands() -> None:
    layer, keys, values = filled(None, (270,))
    key, value = states(MOST_TOKENS + 1, 91), states(MOST_TOKENS + 1, 92)
    seen = layer.update(key, value)
    for got, expected in zip(seen, (torch.cat([keys, key], 2), torch.cat([values, value], 2)), strict=True):
        assert isinstance(got, torch.Tensor)
        assert (got - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    ours = register()
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation=ours).eval()


@torch.inference_mode()
def logits(model: PreTrainedModel, kv: KVCache, tokens: list[int]) -> torch.Tensor:
    """Of the last token, after those that the cache does not hold yet were read."""
    kept = kv.reuse(tokens)
    with kv.appending(tokens[kept:]) as cache:
        read: torch.Tensor = model(torch.tensor([tokens[kept:]]), past_key_values=cache).logits
    return read[0, -1]


def test_the_demo_says_the_same_past_its_window(model: PreTrainedModel) -> None:
    story = demo_tokenizer().encode("The memory preset keeps a model's weights in 4 bits. " * 20)
    assert len(story) > 3 * model.config.sliding_window
    got, expected = (logits(model, KVCache(model.config, kind, CONTEXT), story) for kind in ("int8", "full"))
    assert (got - expected).square().mean().sqrt() < 0.05 * expected.std()
    assert int(got.argmax()) == int(expected.argmax())


def test_a_roll_back_leaves_what_a_cache_holds_that_never_went_on(model: PreTrainedModel) -> None:
    said = demo_tokenizer().encode("What does the memory preset give up, and what does it keep? " * 12)
    kept, fresh = (KVCache(model.config, "int8", CONTEXT) for _ in range(2))
    for kv in (kept, fresh):
        logits(model, kv, said[:-1])
    logits(model, kept, [*said[:-1], 300, 301, 302, *said])
    assert kept.reuse(said) == len(said) - 1
    assert torch.equal(logits(model, kept, said), logits(model, fresh, said))
