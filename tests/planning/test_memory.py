"""Estimates compared with real bytes: transformers, bitsandbytes, and a measured peak."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BitsAndBytesConfig, DynamicCache, Gemma2Config, Gemma2ForCausalLM, GemmaForCausalLM
from transformers import GemmaConfig as Gemma1Config

from localgemma_cli.backends.pytorch.generation.kv_cache import Int8Layer, KVCache
from localgemma_cli.backends.pytorch.layers.attention import register
from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.models.architecture import Architecture
from localgemma_cli.models.catalog import HUB_MODELS, lookup
from localgemma_cli.models.model_config import architecture_of
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.memory import (
    PREFILL_CHUNK,
    RUNTIME_BYTES,
    MemoryEstimate,
    MemoryInputs,
    WeightFormat,
    estimate_memory,
    kv_cache_bytes,
    weights_bytes,
    workspace_bytes,
)
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets

MEDIUM = {
    "num_hidden_layers": 2,
    "hidden_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 2048,
    "vocab_size": 3000,
    "sliding_window": 32,
    "max_position_embeddings": 256,
}


def architecture(config: Gemma2Config) -> Architecture:
    return architecture_of(config.to_dict(), "medium")


def real_model(shape: Architecture, attention: str = "eager") -> torch.nn.Module:
    config_class = Gemma1Config if shape.family == "gemma" else Gemma2Config
    model_class = GemmaForCausalLM if shape.family == "gemma" else Gemma2ForCausalLM
    config = config_class(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.ffn,
        attn_implementation=attention,
    )
    with torch.device("meta"):
        return model_class(config).eval()


def parameter_bytes(model: torch.nn.Module) -> int:
    """Every tensor of the model, with what bitsandbytes keeps beside its packed ones."""
    return sum(tensor.nbytes for value in model.parameters() for tensor in (value, *beside(value)))


def beside(value: torch.nn.Parameter) -> Iterable[torch.Tensor]:
    state = getattr(value, "quant_state", None)
    if state is not None:
        kept = [state.absmax, state.code, state.offset]
        kept += [state.state2.absmax, state.state2.code] if state.nested else []
        return [tensor for tensor in kept if tensor is not None]
    scales = getattr(value, "SCB", None)
    return [] if scales is None else [scales]


@pytest.mark.parametrize("facts", HUB_MODELS, ids=lambda facts: facts.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_unquantized_weights_are_exact_at_the_true_shapes(facts, dtype):
    model = real_model(facts.architecture).to(getattr(torch, dtype))
    assert weights_bytes(facts.architecture, WeightFormat(dtype)) == parameter_bytes(model)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("medium")
    torch.manual_seed(0)
    Gemma2ForCausalLM(Gemma2Config(**MEDIUM)).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "nested", "options"),
    [
        ("nf4", False, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        (
            "nf4",
            True,
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        ),
        ("int8", False, {"load_in_8bit": True}),
    ],
    ids=["nf4", "nested nf4", "int8"],
)
def test_quantized_weights_are_within_two_percent_of_bitsandbytes(checkpoint, kind, nested, options):
    model = Gemma2ForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.bfloat16,
        device_map="cpu",
        quantization_config=BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.bfloat16, **options),
    )
    estimate = weights_bytes(architecture(model.config), WeightFormat("bfloat16", kind, nested))
    # int8 is exact; NF4 leaves out its tables of 16 and 256 values, which no model of any size notices
    assert estimate == pytest.approx(parameter_bytes(model), rel=0 if kind == "int8" else 0.02)


@pytest.mark.parametrize(
    ("kind", "nested", "size"),
    [("nf4", False, 2.318), ("nf4", True, 2.224), ("int8", False, 3.206)],
)
def test_the_2b_quantized_keeps_its_embedding_whole(kind, nested, size):
    weights = WeightFormat("bfloat16", kind, nested)
    assert weights_bytes(lookup("2b").architecture, weights) / 1e9 == pytest.approx(size, abs=0.002)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["nf4", "int4", "int8"])
def test_streamed_weights_are_within_two_percent_of_what_is_loaded(
    checkpoint, tmp_path, monkeypatch, kind, dtype
):
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    facts = resolve(str(checkpoint), revision=None, offline=True).facts
    overrides = Overrides(dtype=dtype, quantization=kind)
    plan = make_plan(facts, "memory", probe("cpu"), overrides, load_presets(tmp_path))
    assert plan.streamed
    model = load_model(plan, checkpoint, lambda _: None)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    del tensors["model.embed_tokens.weight"]  # in the checkpoint's own file
    real = sum(tensor.nbytes for tensor in tensors.values())
    assert plan.memory.weights_bytes == pytest.approx(real, rel=0.02)
    assert plan.memory.weights_bytes == weights_bytes(
        facts.architecture, WeightFormat(dtype, plan.quantization, streamed=True)
    )


def test_compact_weights_are_within_two_percent_of_what_is_loaded(checkpoint, tmp_path):
    hardware = probe("cpu")
    if not (hardware.bf16_widened and hardware.extension):
        pytest.skip("needs the C extension and a processor without bfloat16 instructions")
    facts = resolve(str(checkpoint), revision=None, offline=True).facts
    plan = make_plan(facts, "speed", hardware, Overrides(), load_presets(tmp_path))
    assert plan.compact
    model = load_model(plan, checkpoint, lambda _: None)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    del tensors["model.embed_tokens.weight"]  # in the checkpoint's own file
    assert plan.memory.weights_bytes == pytest.approx(sum(each.nbytes for each in tensors.values()), rel=0.02)


def test_the_2b_streamed_has_its_head_in_4_or_8_bits():
    shape = lookup("2b").architecture
    size = weights_bytes(shape, WeightFormat("bfloat16", "nf4", streamed=True))
    assert size == (shape.linear_parameters + 256_000 * 2304) * 0.53125 + 2 * shape.norm_parameters
    values = 26 * 1024  # rows in 8 bits, like the head's
    four, eight = shape.linear_parameters - values * 2304, values * 2304 + 256_000 * 2304
    rows = 8 * (shape.linear_rows - values) + 4 * (values + 256_000)
    size = weights_bytes(shape, WeightFormat("float32", "int4", streamed=True))
    assert size == four * 0.5625 + eight * 1.03125 + rows + 4 * shape.norm_parameters
    small = weights_bytes(shape, WeightFormat("float32", "int4", streamed=True, small_head=True))
    assert size - small == 256_000 * (2304 * 0.46875 - 4)


def test_awq_is_half_a_byte_and_its_scales():
    shape = lookup("7b").architecture
    linear = weights_bytes(shape, WeightFormat("float16", "awq")) - weights_bytes(
        shape, WeightFormat("float16")
    )
    assert linear / shape.linear_parameters == pytest.approx(0.5 + 4 / 128 - 2, abs=1e-6)


@pytest.mark.parametrize(("kind", "config"), [("full", False), ("sliding", True)])
@pytest.mark.parametrize("tokens", [20, 100])
def test_the_cache_is_as_large_as_transformers_own(kind, config, tokens):
    shape = Gemma2Config(**MEDIUM)
    cache = DynamicCache(config=shape) if config else DynamicCache()
    for token in range(tokens):
        for layer in range(shape.num_hidden_layers):
            key = torch.zeros(1, shape.num_key_value_heads, 1, shape.head_dim, dtype=torch.bfloat16)
            cache.update(key, key.clone(), layer)
        assert cache.get_seq_length() == token + 1
    real = sum(layer.keys.untyped_storage().nbytes() * 2 for layer in cache.layers)
    estimate = kv_cache_bytes(architecture(shape), "bfloat16", kind, tokens)
    # transformers keeps one token less than the window, and the next one's place is what is counted here
    assert real <= estimate <= real * 1.04


def test_a_cache_in_8_bits_is_as_large_as_its_buffers():
    shape, tokens = Gemma2Config(**MEDIUM), 512
    layers = KVCache(shape, "int8", tokens).cache.layers
    for layer in layers:
        states = torch.zeros(1, shape.num_key_value_heads, tokens, shape.head_dim, dtype=torch.bfloat16)
        layer.update(states, states)
    real = sum(buffer.nbytes for layer in layers for buffer in layer._buffers)
    assert kv_cache_bytes(architecture(shape), "bfloat16", "int8", tokens) == real


def test_a_static_cache_is_full_length():
    shape = lookup("9b").architecture
    assert kv_cache_bytes(shape, "bfloat16", "static", 8192) == 2 * 42 * 8 * 256 * 8192 * 2
    assert kv_cache_bytes(shape, "float32", "full", 8192) == 2 * kv_cache_bytes(
        shape, "bfloat16", "static", 8192
    )


class PeakMemory(TorchDispatchMode):
    """The most bytes alive at once while a model runs; on the meta device that costs no memory at all."""

    def __init__(self, held: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._count(held)
        self.peak = 0

    def _count(self, tensors: Iterable[object]) -> None:
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self._live = {key: pair for key, pair in self._live.items() if not pair[0].expired()}
        self._count(tree_leaves(out))
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def held_by(model: torch.nn.Module, cache: DynamicCache) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    for layer in cache.layers:
        yield from (layer.keys, layer.values)


@pytest.mark.parametrize("facts", HUB_MODELS, ids=lambda facts: facts.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_last_chunk_of_a_full_context_peaks_where_estimated(facts, dtype):
    shape, context = replace(facts.architecture, layers=2), 8192  # a layer more adds no workspace
    model, cache = real_model(shape).to(getattr(torch, dtype)), DynamicCache()
    past = torch.empty(
        1,
        shape.kv_heads,
        context - PREFILL_CHUNK,
        shape.head_dim,
        dtype=getattr(torch, dtype),
        device="meta",
    )
    for layer in range(shape.layers):
        cache.update(torch.empty_like(past), torch.empty_like(past), layer)
    ids = torch.zeros(1, PREFILL_CHUNK, dtype=torch.long, device="meta")
    with torch.no_grad(), PeakMemory(held_by(model, cache)) as memory:
        model(ids, past_key_values=cache, logits_to_keep=1)
    load = MemoryInputs(shape, WeightFormat(dtype), "eager", "full", context, "cuda")
    estimate = estimate_memory(load, available=0, host_available=0)
    rest = memory.peak - estimate.weights_bytes - estimate.kv_cache_bytes
    assert rest <= estimate.workspace_bytes - RUNTIME_BYTES["cuda"] <= 1.15 * rest


@pytest.mark.parametrize("name", ["2b", "7b", "9b", "27b"])
@pytest.mark.parametrize("kind", ["full", "int8"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_our_own_attention_peaks_where_estimated(name, kind, dtype):
    shape, context = replace(lookup(name).architecture, layers=2), 8192
    model = real_model(shape, register()).to(getattr(torch, dtype))
    kv = KVCache(model.config, kind, context)
    kv.reserve(context)
    past = torch.empty(1, shape.kv_heads, context - PREFILL_CHUNK, shape.head_dim, device="meta")
    for layer in kv.cache.layers:
        layer.update(past.to(getattr(torch, dtype)), past.to(getattr(torch, dtype)))
    ids = torch.zeros(1, PREFILL_CHUNK, dtype=torch.long, device="meta")
    with torch.no_grad(), PeakMemory((*model.parameters(), *buffers_of(kv))) as memory:
        model(ids, past_key_values=kv.cache, logits_to_keep=1)
    load = MemoryInputs(shape, WeightFormat(dtype), "eager", kind, context, "cpu")
    estimate = estimate_memory(load, available=0, host_available=0)
    rest = memory.peak - estimate.weights_bytes - estimate.kv_cache_bytes
    assert rest <= estimate.workspace_bytes - RUNTIME_BYTES["cpu"] <= 1.25 * rest


def buffers_of(kv: KVCache) -> Iterator[torch.Tensor]:
    for layer in kv.cache.layers:
        yield from (layer._buffers if isinstance(layer, Int8Layer) else (layer.keys, layer.values))


def test_without_scores_a_workspace_is_smaller_and_a_quantized_one_unpacks_a_matrix():
    shape = lookup("7b").architecture
    eager, sdpa, packed = (
        workspace_bytes(MemoryInputs(shape, weights, attention, "full", 8192, "cuda"))
        for weights, attention in (
            (WeightFormat("bfloat16"), "eager"),
            (WeightFormat("bfloat16"), "sdpa"),
            (WeightFormat("bfloat16", "nf4"), "sdpa"),
        )
    )
    assert eager > packed > sdpa > RUNTIME_BYTES["cuda"]


def test_a_short_context_needs_no_whole_chunk():
    shape = lookup("2b").architecture
    short, long = (
        workspace_bytes(MemoryInputs(shape, WeightFormat("bfloat16"), "eager", "full", context, "cpu"))
        for context in (16, 512)
    )
    assert short < long


@pytest.mark.parametrize(("available", "host", "fits"), [(60, 10, True), (59, 10, False), (60, 9, False)])
def test_fitting_means_fitting_on_device_and_host(available, host, fits):
    memory = MemoryEstimate(10, 20, 30, available, host_bytes=10, host_available_bytes=host)
    assert memory.total_bytes == 60
    assert memory.fits is fits
    assert memory.to_dict()["fits"] is fits
