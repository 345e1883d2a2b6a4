"""Our bfloat16 products against PyTorch's own on a processor without bfloat16 instructions: the same bits."""

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import DynamicCache, Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.kernels import bfloat16 as bfloat16_kernel
from localgemma_cli.backends.pytorch.kernels import compiled
from localgemma_cli.backends.pytorch.kernels.bfloat16 import FEW
from localgemma_cli.backends.pytorch.layers import attention
from localgemma_cli.backends.pytorch.layers.cpu_linear import CompactLinear, WidenedLinear, is_widened
from localgemma_cli.backends.pytorch.layers.packed_linear import tune_linears
from localgemma_cli.planning.host import cpu_flags

pytestmark = [
    pytest.mark.skipif(not is_widened(), reason="the processor has bfloat16 instructions, or does not tell"),
    pytest.mark.skipif("avx512dq" not in (cpu_flags() or ()), reason="no AVX-512"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler"),
]


@pytest.fixture(autouse=True, scope="module")
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALGEMMA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(params=[1, 2, 3, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """PyTorch's order of sums depends on how many share a product."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(torch.bfloat16)


def same(got: Tensor, expected: Tensor) -> bool:
    """Also where something is not a number."""
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", [64, 256, 384, 448, 640, 1152, 1536, 2304, 3584, 9216])
def test_rows_of_a_prompt_are_pytorchs(width: int, threads: int) -> None:
    """Some of them are shared by two threads, and computed as one row."""
    x, weight = numbers(131, width), numbers(1000, width)
    for rows in (9, 10, 11, 17, 64, 65, 131):
        assert same(bfloat16_kernel.linear(x[:rows], weight), linear(x[:rows], weight)), rows


@pytest.mark.parametrize("width", [64, 448, 2304])
def test_compact_weights_give_the_same_bits_in_three_quarters_of_the_bytes(width: int, threads: int) -> None:
    x, weight = numbers(131, width), numbers(999, width)
    compact = bfloat16_kernel.compacted(weight)
    assert sum(part.nbytes for part in vars(compact).values()) < 0.8 * weight.nbytes
    for rows in (1, 2, 5, FEW, 9, 17, 64, 131):
        expected = bfloat16_kernel.linear(x[:rows], weight)
        assert same(bfloat16_kernel.linear(x[:rows], compact), expected), rows


def test_compact_weights_hold_any_number() -> None:
    """Zeros, the smallest and the largest, infinities, and what is none, alone and in whole groups."""
    weight = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16).view(512, 128).clone()
    weight = torch.cat([weight, weight.view(128, 512).T.reshape(512, 128), torch.zeros(3, 128).bfloat16()])
    weight[-1, 7] = -0.0
    compact = bfloat16_kernel.compacted(weight)
    one_each = torch.eye(128, dtype=torch.bfloat16)
    for first in range(0, 128, FEW):
        x = one_each[first : first + FEW]
        got, expected = (bfloat16_kernel.linear(x, each) for each in (compact, weight))
        assert same(got, expected)
    finite = weight[weight.isfinite().all(1)]
    assert len(finite) > 300
    got = bfloat16_kernel.linear(one_each, bfloat16_kernel.compacted(finite))
    assert torch.equal(got, finite.T)


@pytest.mark.parametrize("width", [64, 256, 640, 2304, 9216])
def test_a_few_rows_are_each_pytorchs_of_one(width: int, threads: int) -> None:
    x, weight = numbers(FEW, width), numbers(5000, width)
    one_by_one = torch.cat([linear(row[None], weight) for row in x])
    for rows in range(1, FEW + 1):
        assert same(bfloat16_kernel.linear(x[:rows], weight), one_by_one[:rows]), rows


def test_what_is_not_finite_and_the_smallest_numbers_are_pytorchs() -> None:
    x, weight = numbers(20, 320), numbers(100, 320)
    x[0, 7], x[1, 8], x[2] = float("inf"), float("nan"), 0
    x[3] *= 1e-38
    weight[5] *= 1e-3
    for rows in (4, 20):
        one_by_one = torch.cat([linear(row[None], weight) for row in x[:rows]])
        expected = one_by_one if rows <= FEW else linear(x[:rows], weight)
        assert same(bfloat16_kernel.linear(x[:rows], weight), expected)


@pytest.mark.parametrize("tokens", [9, 33, 300, 770, 1001, 2500])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(8, 4, 256), (4, 1, 256), (6, 3, 128), (4, 4, 64)])
def test_attention_is_pytorchs_over_keys_that_were_copied_for_each_query(
    heads: int, key_heads: int, width: int, tokens: int, threads: int
) -> None:
    keys, values = numbers(key_heads, tokens, width), numbers(key_heads, tokens + 1, width)[:, 1:]
    group = heads // key_heads
    for asked in (1, 9, 40):
        x = numbers(heads, asked, width)
        scores = x @ keys.repeat_interleave(group, 0).mT
        grouped = x.reshape(key_heads, -1, width)
        got = bfloat16_kernel.attended(grouped, keys, asked, 0, key_heads)
        assert same(got.view_as(scores), scores), asked
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(torch.bfloat16)
        mixed = weights @ values.repeat_interleave(group, 0)
        of_keys = weights.reshape(key_heads, -1, tokens)
        halves = [
            bfloat16_kernel.attended(
                of_keys[first : first + 1], values[first : first + 1], asked, first, key_heads, across=True
            )
            for first in range(key_heads)
        ]
        assert same(torch.cat(halves).view_as(mixed), mixed), asked


GEMMA2 = Gemma2Config(
    vocab_size=2000,
    hidden_size=320,
    intermediate_size=1152,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    query_pre_attn_scalar=64,
    sliding_window=512,
    initializer_range=0.1,
)
GEMMA3 = Gemma3TextConfig(
    vocab_size=2000,
    hidden_size=640,
    intermediate_size=2048,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    sliding_window=512,
    initializer_range=0.1,
)


@pytest.mark.parametrize("compact", [False, True], ids=["plain", "compact"])
@pytest.mark.parametrize("config", [GEMMA2, GEMMA3], ids=["gemma2", "gemma3"])
@torch.inference_mode()
def test_a_models_logits_are_transformers_own_bit_for_bit(
    config: Gemma2Config | Gemma3TextConfig, compact: bool, threads: int
) -> None:
    """Of a prompt, and of each of some steps after it."""
    family = Gemma2ForCausalLM if config is GEMMA2 else Gemma3ForCausalLM
    torch.manual_seed(0)
    plain = family._from_config(config, attn_implementation="eager", dtype=torch.bfloat16).eval()
    ours = family._from_config(config, attn_implementation=attention.register(), dtype=torch.bfloat16).eval()
    ours.load_state_dict(plain.state_dict())
    tune_linears(ours, compact)
    kind = CompactLinear if compact else WidenedLinear
    assert sum(isinstance(module, kind) for module in ours.modules()) == 7 * config.num_hidden_layers + 1
    for length in (10, 33, 64, 257):
        ids = torch.randint(0, 2000, (1, length), generator=torch.Generator().manual_seed(length))
        caches = DynamicCache(config=plain.config), KVCache(ours.config, "full", 1024).cache
        for step in range(6):
            expected, got = (
                model(ids, past_key_values=cache, use_cache=True).logits
                for model, cache in zip((plain, ours), caches, strict=True)
            )
            assert torch.equal(got, expected), (length, step)
            ids = expected[:, -1:].argmax(-1)


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ("", ""),
        ("_mm512_fmadd_ps(weights, numbers,", "_mm512_fmadd_ps(weights, weights,"),
        ("sum = _mm512_fmadd_ps(first_of(a), first_of(b), sum);", ""),
        ("first + turned(t, some)", "first"),
        ("_mm512_fmadd_ps(number, weights[i],", "_mm512_fmadd_ps(number, weights[0],"),
        ("set1_epi16((short)0x807f)", "set1_epi16((short)0x807e)"),
        ("set1_epi16((short)0x807f)", "set1_epi16((short)0x007f)"),
    ],
    ids=["as it is", "few rows", "scores", "values", "many rows", "compact mantissas", "compact signs"],
)
def test_a_library_that_computes_something_else_is_found_out(said: str, instead: str, tmp_path: Path) -> None:
    source = Path(compiled.__file__).with_name("bfloat16.c").read_text()
    assert said in source
    (tmp_path / "other.c").write_text(source.replace(said, instead))
    compiled._compile(("cc", *compiled._FLAGS), tmp_path / "other.c", tmp_path / "other.so")
    library = compiled.bound(ctypes.CDLL(str(tmp_path / "other.so")), bfloat16_kernel.ARGUMENTS)
    assert bfloat16_kernel._is_right(library) == (said == instead)
