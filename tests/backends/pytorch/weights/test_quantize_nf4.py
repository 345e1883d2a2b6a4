"""Our own NF4 against bitsandbytes', bit for bit; the streamed model against transformers' own load."""

import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes import functional as bnb
from safetensors.torch import load_file, save_file
from support.checkpoints import Nowhere
from support.models import DEMO, demo_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Gemma2Config, Gemma2ForCausalLM

from localgemma_cli.backends.pytorch.layers.nf4 import InterleavedNF4, PlainNF4, nf4_layout
from localgemma_cli.backends.pytorch.loading.convert_4bit import write_quantized
from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.backends.pytorch.loading.quantized_file import Conversion, QuantizedFile
from localgemma_cli.backends.pytorch.weights import quantize_nf4 as quantize
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.resolve import resolve
from localgemma_cli.models.safetensors_file import TensorEntry, header, read_checkpoint
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import LoadPlan, Overrides, make_plan
from localgemma_cli.planning.presets import load_presets

TINY = {
    "num_hidden_layers": 3,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 320,
    "vocab_size": 420,  # not by 32: the head cannot be interleaved
    "sliding_window": 16,
    "max_position_embeddings": 128,
}
DTYPES = [torch.bfloat16, torch.float32, torch.float16]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**TINY))
    for name, parameter in model.named_parameters():  # so that a greedy answer varies
        nn.init.normal_(parameter, std=0.02 if "embed" in name else 0.15)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="200KB")
    return folder


def plan_for(folder: Path, dtype: str = "bfloat16", preset: str = "memory") -> LoadPlan:
    source = resolve(str(folder), revision=None, offline=True)
    overrides = Overrides(dtype=dtype, quantization="nf4")
    return make_plan(source.facts, preset, probe("cpu"), overrides, load_presets())


def silent(_: object) -> None:
    pass


def awkward(dtype: torch.dtype) -> torch.Tensor:
    """[64, 320]: normal numbers, blocks of zeros and of one value, tiny and huge ones, and exact bounds."""
    values = torch.randn(64, 320, generator=torch.Generator().manual_seed(1))
    values[0, :64], values[1, 64:128], values[2] = 0, 3.25, values[2] * 1e-6
    values[3] *= 6e4 / values[3].abs().max() if dtype == torch.float16 else 1e30
    bounds = torch.from_numpy(quantize.LEVELS[:-1] + quantize.LEVELS[1:]) / 2
    values[4, :15], values[4, 15:64] = bounds, 1
    values[5, :64] = 0
    values[5, 7] = -1e-7
    return values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_is_bitsandbytes_own(dtype: torch.dtype) -> None:
    weight = awkward(dtype)
    reference, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    levels, maxima = quantize.quantize_nf4(weight.float().numpy())
    assert np.array_equal(quantize.LEVELS, state.code.numpy())
    assert np.array_equal(maxima.reshape(-1), state.absmax.numpy())
    assert np.array_equal(quantize.pack_plain(levels).reshape(-1, 1), reference.numpy())


def test_rows_are_interleaved_as_bitsandbytes_does_it_at_the_first_forward() -> None:
    weight = awkward(torch.bfloat16)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    expected, _ = bnb._convert_weight_packed_for_cpu(packed, state)
    levels, _ = quantize.quantize_nf4(weight.float().numpy())
    assert np.array_equal(quantize.pack_interleaved(levels), expected.numpy())


def reference_model(folder: Path, dtype: str) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
        ),
    ).eval()


def with_a_whole_head(model: nn.Module) -> nn.Module:
    """The head as transformers leaves it: the embedding's own matrix, unquantized."""
    table = model.model.embed_tokens.weight
    model.lm_head = nn.Linear(table.shape[1], table.shape[0], bias=False, device="meta")
    model.lm_head.weight = nn.Parameter(table.to(model.dtype), requires_grad=False)
    return model


def greedy(model: nn.Module, prompt: torch.Tensor, tokens: int = 24) -> list[int]:
    with torch.inference_mode():
        out = model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return out[0, prompt.shape[1] :].tolist()


def a_question() -> torch.Tensor:
    turn = [{"role": "user", "content": "What does the memory preset do?"}]
    return demo_tokenizer().apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("which", ["tiny", "demo"])
def test_answers_are_those_of_transformers_own_nf4(which: str, dtype: str, tiny: Path) -> None:
    folder = tiny if which == "tiny" else DEMO
    ours = with_a_whole_head(load_model(plan_for(folder, dtype), folder, silent))
    reference = reference_model(folder, dtype)
    prompt = a_question() if which == "demo" else torch.tensor([[2, 17, 300, 45, 101, 7, 64, 222]])
    with torch.inference_mode():
        assert torch.equal(ours(prompt).logits, reference(prompt).logits)
    tokens = greedy(ours, prompt)
    assert tokens == greedy(reference, prompt)
    assert len(set(tokens)) > 3


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def test_a_second_load_maps_the_first_ones_copy_and_is_the_same(tiny: Path) -> None:
    stages: list[str] = []
    plan = plan_for(tiny)
    first = load_model(plan, tiny, lambda told: stages.append(told.stage))
    assert set(stages) == {"preparing to load", "quantizing"}
    stages.clear()
    second = load_model(plan, tiny, lambda told: stages.append(told.stage))
    assert stages == ["preparing to load"]
    one, two = tensors_of(first), tensors_of(second)
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(tensor.is_meta for tensor in one.values())


def test_the_copy_on_disk_is_not_changed_by_computing(tiny: Path) -> None:
    """bitsandbytes' own modules write corrupt weights after a first forward."""
    plan = plan_for(tiny)
    model = load_model(plan, tiny, silent)
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    greedy(model, torch.tensor([[2, 5, 9]]))
    after = tensors_of(load_model(plan, tiny, silent))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_layer_and_the_head_compute_what_their_numbers_say(tiny: Path) -> None:
    model = load_model(plan_for(tiny), tiny, silent)
    checkpoint = read_checkpoint(tiny)
    layer, head = model.model.layers[1].mlp.down_proj, model.lm_head
    assert isinstance(layer, InterleavedNF4 if nf4_layout() == "interleaved" else PlainNF4)
    assert isinstance(head, PlainNF4)
    for module, name in ((layer, "model.layers.1.mlp.down_proj"), (head, "model.embed_tokens")):
        stored = checkpoint[f"{name}.weight"]
        weight = load_file(stored.file)[f"{name}.weight"]
        packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
        x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
        expected = x.float() @ bnb.dequantize_4bit(packed, state).float().T
        with torch.inference_mode():
            assert (module(x).float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_head_of_its_own_is_the_one_that_is_quantized(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "untied"
    torch.manual_seed(3)
    Gemma2ForCausalLM(Gemma2Config(**TINY, tie_word_embeddings=False)).save_pretrained(folder)  # in float32
    plan = plan_for(folder)
    model = load_model(plan, folder, silent)
    weight = load_file(folder / "model.safetensors")["lm_head.weight"].to(torch.bfloat16)
    expected, _ = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    assert torch.equal(model.lm_head.packed, expected)
    assert model.model.embed_tokens(torch.tensor([[3]])).dtype == torch.bfloat16


def test_quantizing_needs_a_fraction_of_one_matrix(tmp_path: Path) -> None:
    weight = torch.zeros(16384, 2304, dtype=torch.bfloat16)  # 75 MB
    save_file({"w": weight}, tmp_path / "model.safetensors")
    del weight
    conversion = Conversion("w", read_checkpoint(tmp_path)["w"], "interleaved")
    file = QuantizedFile((conversion,), torch.bfloat16)
    sink = Nowhere()
    tracemalloc.start()
    write_quantized(file, sink, silent)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sink.size == file.size
    assert sink.size == pytest.approx(16384 * 2304 * 0.53125, rel=0.001)
    assert peak < 8e6 * (1 + torch.get_num_threads())


MEMORY_SCRIPT = """
import resource, sys, torch
from pathlib import Path
from localgemma_cli.backends.pytorch.loading.convert_4bit import write_quantized
from localgemma_cli.backends.pytorch.loading.quantized_file import Conversion, QuantizedFile
from localgemma_cli.models.safetensors_file import read_checkpoint

class Nowhere:
    def write(self, data):
        return data.nbytes

conversion = Conversion("w", read_checkpoint(Path(sys.argv[1]))["w"], "interleaved")
file = QuantizedFile((conversion,), torch.bfloat16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_quantized(file, Nowhere(), lambda _: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_thousands_of_pieces_do_not_add_up(tmp_path: Path) -> None:
    """In a process of its own, as the allocator's own loss counts too: 64,000 rows once held on to 0.5 GB."""
    entry = TensorEntry("w", "BF16", (64_000, 2304))
    path = tmp_path / "model.safetensors"
    size = path.write_bytes(header([entry]))
    os.truncate(path, size + entry.size)  # zeros that take no disk
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert int(done.stdout) * 1024 < 100e6


def test_a_checkpoint_that_lacks_a_tensor_is_refused_and_leaves_no_copy(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    folder.mkdir()
    tensors = {name: load_file(stored.file)[name] for name, stored in read_checkpoint(tiny).items()}
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_bytes((tiny / "config.json").read_bytes())
    with pytest.raises(
        NotFoundError, match=r"Missing tensors: 1, including model\.layers\.2\.mlp\.up_proj\.weight"
    ):
        load_model(plan_for(folder), folder, silent)
    assert not list((tmp_path / "home").rglob("weights.safetensors"))


@pytest.mark.parametrize("damage", ["cut short", "no header", "other shape"])
def test_a_damaged_checkpoint_is_refused(damage: str, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    tensors = {name: load_file(stored.file)[name] for name, stored in read_checkpoint(tiny).items()}
    if damage == "other shape":
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:64].clone()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_bytes((tiny / "config.json").read_bytes())
    path = folder / "model.safetensors"
    content = path.read_bytes()
    if damage != "other shape":
        path.write_bytes(content[: len(content) // 2] if damage == "cut short" else b"\xff" * 64)
    with pytest.raises(NotFoundError, match="cannot be loaded"):
        load_model(plan_for(folder), folder, silent)


def test_float16_quantizes_what_float16_holds(tiny: Path) -> None:
    model = load_model(plan_for(tiny, "float16"), tiny, silent)
    weight = load_file(read_checkpoint(tiny)["model.embed_tokens.weight"].file)["model.embed_tokens.weight"]
    expected, _ = bnb.quantize_4bit(weight.half(), blocksize=64, quant_type="nf4", compress_statistics=False)
    assert torch.equal(model.lm_head.packed, expected)


def test_other_quantizations_are_left_to_transformers(tiny: Path) -> None:
    plan = replace(plan_for(tiny), quantization="none", streamed=False)
    model = load_model(plan, tiny, silent)
    assert not any(isinstance(module, InterleavedNF4 | PlainNF4) for module in model.modules())
