"""int4 and int8 against their definition and the unquantized model; their kept copies."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import Nowhere, greedy, loaded, plan_for, tiny
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.kernels.grouped import find_grouped_rows
from localgemma_cli.backends.pytorch.kernels.library import variants
from localgemma_cli.backends.pytorch.layers.cpu_linear import bind_rows
from localgemma_cli.backends.pytorch.layers.grouped import GroupedLinear
from localgemma_cli.backends.pytorch.layers.nf4 import InterleavedNF4, PlainNF4
from localgemma_cli.backends.pytorch.loading.convert_4bit import write_quantized
from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.backends.pytorch.loading.quantized_cache import list_copies
from localgemma_cli.backends.pytorch.loading.quantized_file import Conversion, QuantizedFile
from localgemma_cli.backends.pytorch.weights.groups import pack_groups, unpack_groups
from localgemma_cli.backends.pytorch.weights.quantize_grouped import quantize_rows
from localgemma_cli.models.safetensors_file import read_checkpoint
from localgemma_cli.render.progress import ignore_progress

ODD = {"vocab_size": 2020, "intermediate_size": 448}  # rows that no block divides


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


def quantized(weights: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed, and factors, padded to whole blocks."""
    padded = torch.nn.functional.pad(weights.float(), (0, 0, 0, -len(weights) % 32))
    groups = quantize_rows(padded, bits)
    return pack_groups(groups.levels, groups.scales, groups.offsets), groups.factors.contiguous()


@pytest.mark.parametrize(("kind", "others"), [("int4", 4), ("int8", 8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_layer_and_the_head_compute_what_their_numbers_say(
    checkpoint: Path, kind: str, others: int, dtype: str
) -> None:
    """The extension rounds its inputs to 8 bits."""
    model = load(checkpoint, kind, dtype)
    stored = read_checkpoint(checkpoint)
    names = [name for name, module in model.named_modules() if isinstance(module, GroupedLinear)]
    assert len(names) == 7 * 3 + 1
    named = {"mlp.down_proj": others, "self_attn.k_proj": others, "self_attn.v_proj": 8}
    layers = {f"model.layers.1.{name}": bits for name, bits in named.items()} | {"lm_head": 8}
    for name, bits in layers.items():
        source = "model.embed_tokens" if name == "lm_head" else name
        weight = load_file(stored[f"{source}.weight"].file)[f"{source}.weight"]
        expected_weight = unpack_groups(*quantized(weight.to(getattr(torch, dtype)), bits))[: len(weight)]
        for rows in (1, 5, 96):
            x = torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(rows))
            x = x.to(getattr(torch, dtype))
            expected = x.float() @ expected_weight.T
            with torch.inference_mode():
                product = model.get_submodule(name)(x[None])[0]
            assert product.dtype == x.dtype
            assert product.shape == expected.shape
            assert (product.float() - expected).abs().max() < 0.012 * expected.abs().max()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_layer_takes_any_type_and_shape_and_computes_without_the_extension(
    dtype: torch.dtype, bits: int
) -> None:
    packed, factors = quantized(torch.randn(50, 256, generator=torch.Generator().manual_seed(3)), bits)
    layer = copy.deepcopy(GroupedLinear(packed, factors, 50))
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(4)).to(dtype).T.view(2, 3, 256)
    expected = x.float() @ unpack_groups(packed, factors)[:50].T
    for case in range(2):
        got = layer(x)
        assert (got.dtype, got.shape) == (dtype, expected.shape)
        assert (got.float() - expected).abs().max() < (0.012, 0.008)[case] * expected.abs().max()
        assert layer(x[:0]).shape == (0, 3, 50)
        layer._rounds = False


def test_a_second_load_maps_the_copy_and_nf4_has_one_of_its_own(checkpoint: Path) -> None:
    def stages_of_loading(kind: str) -> set[str]:
        stages: set[str] = set()
        plan = plan_for(checkpoint, quantization=kind, dtype="float32")
        load_model(plan, checkpoint, lambda told: stages.add(told.stage))
        return {stage for stage in stages if not stage.startswith(("preparing", "quantizing without"))}

    assert stages_of_loading("int4") == {"quantizing"}
    answer = greedy(load(checkpoint))
    assert len(set(answer)) > 3
    (kept,) = list_copies(verify=True)
    assert (kept.form["quantization"], kept.form["head"], kept.problem) == ("int4", "int8", "")
    assert stages_of_loading("nf4") == {"quantizing"}
    assert isinstance(load(checkpoint, "nf4").lm_head, InterleavedNF4 | PlainNF4)
    assert len(list_copies()) == 2
    assert stages_of_loading("int4") == set()
    assert greedy(load(checkpoint)) == answer


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_the_file_has_the_announced_size_and_rows_are_padded(checkpoint: Path, kind: str) -> None:
    source = read_checkpoint(checkpoint)["model.embed_tokens.weight"]
    file = QuantizedFile((Conversion("head", source, kind),), torch.float32)
    sink = Nowhere()
    write_quantized(file, sink, ignore_progress)
    assert sink.size == file.size
    bytes_of_group, parts = (576, 2) if kind == "int4" else (1056, 1)
    assert [entry.shape for entry in file.entries] == [(64, 8, bytes_of_group), (parts, 2048)]


def test_the_product_is_found_where_the_extension_is() -> None:
    assert (find_grouped_rows() is None) == (not variants())


@pytest.mark.parametrize("extension", [True, False])
def test_bound_rows_are_multiplied_as_often_as_they_are_called(extension: bool) -> None:
    packed, factors = quantized(torch.randn(50, 256, generator=torch.Generator().manual_seed(3)), 4)
    layer = GroupedLinear(packed, factors, 50)
    layer._rounds = layer._rounds and extension
    rows = torch.zeros(3, 256, dtype=torch.bfloat16)
    call, out = bind_rows(layer, rows)
    assert out.is_contiguous()
    for seed in range(2):
        rows.copy_(torch.randn(3, 256, generator=torch.Generator().manual_seed(seed)))
        call()
        assert torch.equal(out, torch.cat([layer(row[None]) for row in rows]))
