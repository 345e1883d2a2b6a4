"""AWQ GEMM checkpoints: true layout, known weights, against the dequantized reference."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.awq import packed, write_awq
from support.checkpoints import SHAPE, greedy, loaded, logits, plan_for, tiny
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from localgemma_cli.backends.pytorch.layers.int4 import Int4Linear, from_levels, row_block
from localgemma_cli.backends.pytorch.loading.awq import unpack_int32
from localgemma_cli.errors import NotFoundError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    """A Gemma 1 with a head of its own, and its reference: plain weights, plain transformers, float32."""
    folder = tmp_path_factory.mktemp("awq")
    model = tiny("gemma", tie_word_embeddings=False)
    reference = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager")
    reference.load_state_dict(write_awq(folder, model))
    return folder, reference.eval()


def test_a_word_holds_its_eight_columns_in_awqs_order() -> None:
    word = torch.tensor([[0x75316420]], dtype=torch.int32)  # nibble i holds column ORDER[i]
    assert unpack_int32(word).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    values = torch.randint(0, 16, (6, 64), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack_int32(packed(values)).long(), values)


def test_unpacked_it_is_the_reference(checkpoint: tuple[Path, PreTrainedModel]) -> None:
    folder, reference = checkpoint
    model = loaded(folder, "exact", dtype="float32")
    assert not any(isinstance(each, Int4Linear) for each in model.modules())
    assert torch.equal(logits(model), logits(reference))
    assert greedy(model) == greedy(reference)
    assert len(set(greedy(model))) > 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_in_4_bits_its_logits_are_the_references_within_rounding(
    checkpoint: tuple[Path, PreTrainedModel], dtype: str
) -> None:
    folder, reference = checkpoint
    kept = loaded(folder, "memory", dtype=dtype)
    linears = [each for each in kept.modules() if isinstance(each, Int4Linear)]
    assert len(linears) == 7 * SHAPE["num_hidden_layers"]
    expected = logits(reference)
    rounded = logits(loaded(folder, "exact", dtype="bfloat16"))
    error, rounding = ((each - expected).abs().mean() for each in (logits(kept), rounded))
    assert error < 1.5 * rounding  # of the same weights in bfloat16
    assert rounding < 0.04 * expected.abs().mean()


def test_a_layer_computes_what_its_numbers_say_for_one_row_and_for_many() -> None:
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(0, 16, (192, 256), dtype=torch.uint8, generator=generator)
    zeros = torch.randint(0, 16, (2, 192), generator=generator).float()
    scales = torch.rand(2, 192, generator=generator) * 0.02
    layer = from_levels(levels, scales, zeros, "cpu")
    groups = levels.view(192, 2, 128) - zeros.T[..., None]
    weight = (groups * scales.T[..., None]).view(192, 256)
    for rows in (1, 3, 130):
        x = torch.randn(rows, 256, generator=generator)
        expected = x @ weight.T
        assert (layer(x) - expected).abs().max() < 0.02 * expected.abs().max()
        assert layer(x).dtype == x.dtype
    assert row_block() in (64, 32)  # the fast way for a prompt is there, too


@pytest.mark.parametrize("group", [32, 64])
def test_other_group_sizes_keep_their_bits(group: int, tmp_path: Path) -> None:
    model = tiny("gemma", tie_word_embeddings=False)
    reference = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager")
    reference.load_state_dict(write_awq(tmp_path / "m", model, group))
    kept = loaded(tmp_path / "m", "memory", dtype="float32")
    assert any(isinstance(each, Int4Linear) for each in kept.modules())
    expected = logits(reference.eval())
    assert (logits(kept) - expected).abs().mean() < 0.04 * expected.abs().mean()


def test_its_own_head_is_kept_and_a_copy_of_the_embedding_is_not(tmp_path: Path) -> None:
    model = tiny("gemma", tie_word_embeddings=False)
    write_awq(tmp_path / "own", model)
    config = json.loads((tmp_path / "own/config.json").read_text())
    (tmp_path / "own/config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    kept = loaded(tmp_path / "own", "exact", dtype="float32")
    assert torch.equal(kept.lm_head.weight, model.lm_head.weight.half().float())
    tensors = load_file(tmp_path / "own/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "own/model.safetensors", metadata={"format": "pt"})
    tied = loaded(tmp_path / "own", "exact", dtype="float32")
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_the_plan_says_the_form_and_what_becomes_of_it(checkpoint: tuple[Path, PreTrainedModel]) -> None:
    folder, _ = checkpoint
    automatic, exact = plan_for(folder, None), plan_for(folder, "exact")
    assert automatic.quantization == "awq"
    assert automatic.to_dict()["model"]["stored"] == "4-bit AWQ in groups of 128"  # type: ignore[index]
    assert any("kept in 4 bits as the repository stores them" in reason for reason in automatic.reasons)
    assert exact.quantization == "none"
    assert any("unpacked" in reason for reason in exact.reasons)
    assert automatic.memory.weights_bytes < exact.memory.weights_bytes
    held = sum(each.nbytes for each in loaded(folder, "memory", dtype="float32").state_dict().values())
    planned = plan_for(folder, "memory", dtype="float32").memory.weights_bytes
    assert held == pytest.approx(planned, rel=0.01)


def test_a_checkpoint_without_one_of_its_parts_is_refused(
    checkpoint: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    tensors = load_file(checkpoint[0] / "model.safetensors")
    (tmp_path / "config.json").write_bytes((checkpoint[0] / "config.json").read_bytes())
    for lost in ("model.layers.1.mlp.up_proj.qzeros", "model.norm.weight"):
        kept = {name: tensor for name, tensor in tensors.items() if name != lost}
        save_file(kept, tmp_path / "model.safetensors")
        with pytest.raises(NotFoundError, match=lost):
            loaded(tmp_path)


@pytest.mark.gpu
def test_on_cuda_a_layer_computes_what_its_numbers_say() -> None:
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(0, 16, (192, 256), dtype=torch.uint8, generator=generator)
    zeros = torch.randint(0, 16, (2, 192), generator=generator).float()
    scales = torch.rand(2, 192, generator=generator) * 0.02
    layer: nn.Module = from_levels(levels, scales, zeros, "cuda").cuda()
    weight = ((levels.view(192, 2, 128) - zeros.T[..., None]) * scales.T[..., None]).view(192, 256)
    for rows in (1, 70):
        x = torch.randn(rows, 256, generator=generator)
        expected = x @ weight.T
        assert (layer(x.cuda()).cpu() - expected).abs().max() < 0.02 * expected.abs().max()
