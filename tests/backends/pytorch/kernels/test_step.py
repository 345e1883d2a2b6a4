"""What a decoding step computes between its products, in every variant, against its definition in PyTorch."""

import pytest
import torch
from torch import Tensor

from localgemma_cli.backends.pytorch.kernels.library import variants
from localgemma_cli.backends.pytorch.kernels.step import (
    AttentionShape,
    CachedTokens,
    StepFunctions,
    bind_step,
)
from localgemma_cli.backends.pytorch.layers.kv_int8 import quantize_states

pytestmark = pytest.mark.skipif(not variants(), reason="needs the C extension for this processor")
EPSILON = 1e-6


@pytest.fixture(params=variants())
def functions(request: pytest.FixtureRequest) -> StepFunctions:
    return bind_step(request.param)


def numbers(*shape: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(torch.bfloat16)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON) * (1 + weight.float())
    return wide.to(torch.bfloat16)


@pytest.mark.parametrize("norms_first", [True, False])
def test_a_block_is_added_and_the_state_normed(functions: StepFunctions, norms_first: bool) -> None:
    state, added, after, weight = (numbers(640 + i)[:640].clone() for i in range(4))
    expected = state + (normed(added, after) if norms_first else added)
    out = torch.empty_like(state)
    first = after.data_ptr() if norms_first else None
    pointers = (state.data_ptr(), added.data_ptr(), first, weight.data_ptr(), out.data_ptr())
    functions["add_norm"](1, 640, EPSILON, *pointers)
    assert torch.equal(state, expected)
    torch.testing.assert_close(out, normed(expected, weight))


def test_the_gate_is_gelu_in_its_tanh_form_from_the_smallest_to_the_largest_number(
    functions: StepFunctions,
) -> None:
    gate = torch.cat([numbers(2048, scale=3), torch.tensor([0, -0.0, 1e-30, -1e-6, 90, -90, 3e38, -3e38])])
    gate, up = gate.to(torch.bfloat16), numbers(2056)
    out = torch.empty_like(gate)
    functions["gate"](2, len(gate), gate.data_ptr(), up.data_ptr(), out.data_ptr())
    expected = torch.nn.functional.gelu(gate.double(), approximate="tanh").to(torch.bfloat16) * up
    torch.testing.assert_close(out, expected, rtol=2**-6, atol=1e-6)
    gate[5] = float("nan")
    functions["gate"](2, len(gate), gate.data_ptr(), up.data_ptr(), out.data_ptr())
    assert out.isnan().nonzero().tolist() == [[5]]


HEADS, KV_HEADS, WIDTH, ROOM = 4, 2, 32, 300


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-high, low], dim=-1) * sines


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("has_norms", [True, False])
@pytest.mark.parametrize("in_int8", [True, False])
@pytest.mark.parametrize(("first", "end"), [(0, 1), (0, 77), (13, 300)])
def test_attention_of_one_token(
    functions: StepFunctions, first: int, end: int, in_int8: bool, has_norms: bool, softcap: float
) -> None:
    query, key, value = numbers(HEADS, WIDTH), numbers(KV_HEADS, WIDTH), numbers(KV_HEADS, WIDTH + 1)[:, 1:]
    value = value.contiguous()
    angles = torch.linspace(0, 3, WIDTH // 2).repeat(2)
    cosines, sines = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
    norms = [numbers(WIDTH + 2 + i)[:WIDTH].clone() for i in range(2)] if has_norms else [None, None]
    keys, values = numbers(KV_HEADS, ROOM, WIDTH), numbers(KV_HEADS, WIDTH, ROOM)
    parts = [
        turned(each if norm is None else normed(each, norm), cosines, sines)
        for each, norm in zip((query, key), norms, strict=True)
    ]
    seen, mixed = keys.float(), values.float()
    scales = None
    kept = (keys, values)
    if in_int8:
        (levels, one), (columns, other) = quantize_states(keys), quantize_states(values.mT)
        scales, kept = torch.cat([one, other]), (levels, columns.mT.contiguous())
        seen, mixed = levels * one.float()[..., None], (columns * other.float()[..., None]).mT
    seen[:, end - 1], mixed[..., end - 1] = parts[1].float(), value.float()
    grouped = parts[0].float().view(KV_HEADS, -1, WIDTH)
    scores = grouped @ seen[:, first:end].mT * 0.2
    scores = torch.tanh(scores / softcap) * softcap if softcap else scores
    expected = torch.softmax(scores, -1) @ mixed[..., first:end].mT

    out = torch.empty_like(query)
    scratch = torch.empty(2, HEADS * 364)
    tensors = (*norms, query, key, value, out)
    shape = AttentionShape(
        HEADS, KV_HEADS, WIDTH, 0.2, softcap, EPSILON, *(None if t is None else t.data_ptr() for t in tensors)
    )
    strides = (kept[0].stride(0), kept[1].stride(0), kept[1].stride(1))
    apart = (None, 0) if scales is None else (scales.data_ptr(), scales.stride(0))
    tokens = CachedTokens(
        *(t.data_ptr() for t in kept),
        *(*strides, *apart, first, end),
        *(each.data_ptr() for each in (*scratch, cosines, sines)),
    )
    functions["attend_rows"](2, 1, shape, tokens)
    assert (out.view_as(expected).float() - expected).abs().max() < 0.03 * expected.abs().max()
    if in_int8:
        assert torch.equal(kept[0][:, end - 1], quantize_states(parts[1])[0])
        assert torch.equal(kept[1][..., end - 1], quantize_states(value)[0])
        assert torch.equal(
            scales[:, end - 1], torch.cat([quantize_states(each)[1] for each in (parts[1], value)])
        )
    else:
        assert torch.equal(keys[:, end - 1], parts[1])
        assert torch.equal(values[..., end - 1], value)
