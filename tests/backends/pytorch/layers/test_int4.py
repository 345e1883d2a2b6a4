"""int4 against its definition, NF4 and the unquantized model; its kept copy by processor."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import Nowhere, greedy, loaded, plan_for, tiny
from support.models import DEMO, demo_fp32, demo_tokenizer, needs_int4
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.kernels.int4 import find_int4_rows, interleave_levels
from localgemma_cli.backends.pytorch.layers.int4 import Int4Linear, row_block
from localgemma_cli.backends.pytorch.layers.nf4 import InterleavedNF4, PlainNF4
from localgemma_cli.backends.pytorch.loading.convert_4bit import write_quantized
from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.backends.pytorch.loading.quantized_cache import list_copies
from localgemma_cli.backends.pytorch.loading.quantized_file import Conversion, QuantizedFile
from localgemma_cli.backends.pytorch.weights import quantize_int4
from localgemma_cli.backends.pytorch.weights import quantize_nf4 as quantize
from localgemma_cli.models.safetensors_file import read_checkpoint
from localgemma_cli.render.progress import ignore_progress

pytestmark = needs_int4
ODD = {"vocab_size": 2020, "intermediate_size": 448}  # rows that no kernel's block divides


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny(**ODD).to(torch.bfloat16).save_pretrained(folder, max_shard_size="500KB")
    return folder


def load(folder: Path, kind: str = "int4", dtype: str = "float32") -> PreTrainedModel:
    return loaded(folder, quantization=kind, dtype=dtype)


def unpacked(rows: np.ndarray) -> torch.Tensor:
    """What the levels and factors of these weights say."""
    levels, factors = quantize_int4.quantize_int4(rows)
    scales, offsets = factors.float().unsqueeze(-1).unbind(2)
    groups = torch.from_numpy(levels).view(*scales.shape[:2], quantize_int4.GROUP).float()
    return ((groups - 8) * scales + offsets).view(rows.shape)


def error(weights: torch.Tensor, kept: torch.Tensor) -> float:
    return float((weights - kept).norm() / weights.norm())


def nf4_error(weights: torch.Tensor) -> float:
    levels, maxima = quantize.quantize_nf4(weights.numpy())
    scales = torch.from_numpy(maxima).to(torch.bfloat16).float().unsqueeze(-1)
    kept = torch.from_numpy(quantize.LEVELS[levels]).view(*maxima.shape, quantize.BLOCK) * scales
    return error(weights, kept.view(weights.shape))


def test_normal_numbers_and_the_demos_weights_lose_less_than_in_nf4() -> None:
    normal = torch.randn(256, 2304, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).float()
    demo = load_file(DEMO / "model.safetensors")
    for weights in (normal, *(demo[f"model.layers.{each}.mlp.down_proj.weight"].float() for each in (0, 5))):
        assert error(weights, unpacked(weights.numpy())) < 0.95 * nf4_error(weights)


def test_awkward_groups_lose_nothing_or_little() -> None:
    weights = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    weights[0], weights[1] = 0, 3.25
    weights[2] *= 1e-15
    weights[3] *= 1e15
    weights[4, :40], weights[4, 40:] = -2, 5
    weights[5], weights[5, 9] = 0, -1e-7
    weights[6, :] += 100  # far from zero
    kept = unpacked(weights.numpy())
    assert torch.equal(kept[:2], weights[:2])
    for index, limit in ((2, 0.1), (3, 0.1), (4, 0.01), (5, 0.01), (6, 0.01)):
        assert error(weights[index], kept[index]) < limit


def test_the_layout_is_the_kernels_own() -> None:
    levels = torch.randint(0, 16, (192, 320), generator=torch.Generator().manual_seed(2)).byte()
    block = row_block()
    assert block in (64, 32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.int(), 1)
    assert torch.equal(interleave_levels(levels, block), packed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_layer_and_the_head_compute_what_their_numbers_say(checkpoint: Path, dtype: str) -> None:
    """The extension rounds to 8 bits. Without it, PyTorch rounds to bfloat16; a prompt is not rounded."""
    model = load(checkpoint, dtype=dtype)
    stored = read_checkpoint(checkpoint)
    names = [name for name, module in model.named_modules() if isinstance(module, Int4Linear)]
    assert len(names) == 7 * 3 + 1
    for name in ("model.layers.1.mlp.down_proj", "model.layers.2.self_attn.k_proj", "lm_head"):
        source = "model.embed_tokens" if name == "lm_head" else name
        weight = load_file(stored[f"{source}.weight"].file)[f"{source}.weight"]
        expected_weight = unpacked(weight.to(getattr(torch, dtype)).float().numpy())
        for rows in (1, 5, 95, 96, 200):
            x = torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(rows))
            x = x.to(getattr(torch, dtype))
            expected = x.float() @ expected_weight.T
            with torch.inference_mode():
                product = model.get_submodule(name)(x[None])[0]
            assert product.dtype == x.dtype
            assert product.shape == expected.shape
            allowed = 0.01 if rows < 96 or dtype == "bfloat16" else 1e-3
            if find_int4_rows(row_block()) is not None:
                allowed = 0.012
            assert (product.float() - expected).abs().max() < allowed * expected.abs().max()


def test_a_second_load_maps_the_copy_and_nf4_has_one_of_its_own(checkpoint: Path) -> None:
    def stages_of_loading(kind: str) -> set[str]:
        stages: set[str] = set()
        plan = plan_for(checkpoint, quantization=kind, dtype="float32")
        load_model(plan, checkpoint, lambda told: stages.add(told.stage))
        return stages - {"preparing to load"}

    assert stages_of_loading("int4") == {"quantizing"}
    answer = greedy(load(checkpoint))
    assert len(set(answer)) > 3
    (kept,) = list_copies(verify=True)
    assert (kept.form["quantization"], kept.problem) == ("int4", "")
    assert stages_of_loading("nf4") == {"quantizing"}
    assert isinstance(load(checkpoint, "nf4").lm_head, InterleavedNF4 | PlainNF4)
    assert len(list_copies()) == 2
    assert stages_of_loading("int4") == set()
    assert greedy(load(checkpoint)) == answer


def test_a_copy_of_another_processors_layout_is_not_taken(checkpoint: Path, tmp_path: Path) -> None:
    """A processor with AVX2 only, as far as PyTorch lets one be forced."""
    prompt = torch.tensor([[2, 17, 300, 45, 101, 7, 64, 222]])
    with torch.inference_mode():
        here = load(checkpoint)(prompt).logits
    script = f"""
import torch
from pathlib import Path
from support.checkpoints import loaded
with torch.inference_mode():
    model = loaded(Path({str(checkpoint)!r}), quantization="int4", dtype="float32")
    torch.save(model(torch.tensor({prompt.tolist()})).logits, {str(tmp_path / "logits.pt")!r})
"""
    tests = str(Path(__file__).parents[3])
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "PYTHONPATH": tests}
    # -P: the installed package, which has the extension, and not the source in the current folder
    subprocess.run([sys.executable, "-P", "-c", script], check=True, env=environment, timeout=600)
    there = torch.load(tmp_path / "logits.pt")
    assert (there - here).abs().max() < 0.02 * here.abs().max()
    layouts = {f"{block} rows, groups of 64" for block in (row_block(), 32)}
    assert {kept.form["layout"] for kept in list_copies(verify=True)} == layouts


@pytest.mark.parametrize("kind", ["int4", "nf4"])
def test_the_demos_tokens_are_the_unquantized_models(kind: str) -> None:
    """The likeliest token after each of the reference's own; int4 may lose no more than NF4 does."""
    model, reference, tokenizer = load(DEMO, kind), demo_fp32(), demo_tokenizer()
    same = []
    for question in ("What does the memory preset do?", "How do I get JSON?", "Which preset is smallest?"):
        turn = [{"role": "user", "content": question}]
        asked = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")
        with torch.inference_mode():
            said = reference.generate(asked["input_ids"], max_new_tokens=40, do_sample=False)
            likeliest = model(said).logits[0, :-1].argmax(-1)
        start = asked["input_ids"].shape[1]
        same += (likeliest[start - 1 :] == said[0, start:]).tolist()
    assert len(same) > 40
    assert sum(same) / len(same) > 0.97


def test_the_file_has_the_announced_size_and_rows_are_padded(checkpoint: Path) -> None:
    source = read_checkpoint(checkpoint)["model.embed_tokens.weight"]
    file = QuantizedFile((Conversion("head", source, "int4"),), torch.float32)
    sink = Nowhere()
    write_quantized(file, sink, ignore_progress)
    assert sink.size == file.size
    assert [entry.shape for entry in file.entries] == [(2048, 128), (4, 2048, 2)]
