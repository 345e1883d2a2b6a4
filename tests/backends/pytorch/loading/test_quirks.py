"""What published checkpoints are like: heads, shards, precisions, and what must be refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import add_tokenizer, greedy, loaded, logits, plan_for, tiny
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.resolve import resolve


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_stored_precision_answers_as_the_reference(
    family: str, stored: torch.dtype, tmp_path: Path
) -> None:
    tiny(family).to(stored).save_pretrained(tmp_path)
    model = loaded(add_tokenizer(tmp_path), "exact", dtype="float32")
    assert torch.equal(logits(model), logits(reference(tmp_path)))
    assert greedy(model) == greedy(reference(tmp_path))


@pytest.mark.parametrize("preset", ["exact", "memory"])
def test_a_head_stored_beside_a_config_that_says_tied_is_the_head(preset: str, tmp_path: Path) -> None:
    tiny("gemma2", tie_word_embeddings=False).save_pretrained(tmp_path)
    whole = loaded(add_tokenizer(tmp_path), preset, dtype="float32")
    edit_config(tmp_path, tie_word_embeddings=True)
    said_tied = loaded(tmp_path, preset, dtype="float32")
    assert torch.equal(logits(said_tied), logits(whole))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert not torch.equal(logits(loaded(tmp_path, preset, dtype="float32")), logits(whole))


@pytest.mark.parametrize("preset", ["exact", "memory"])
def test_a_config_that_says_untied_without_a_head_means_the_embedding(preset: str, tmp_path: Path) -> None:
    tiny("gemma2").save_pretrained(tmp_path)
    tied = logits(loaded(add_tokenizer(tmp_path), preset, dtype="float32"))
    edit_config(tmp_path, tie_word_embeddings=False)
    assert torch.equal(logits(loaded(tmp_path, preset, dtype="float32")), tied)


def test_a_head_counts_as_it_is_stored_whatever_the_config_says(tmp_path: Path) -> None:
    def weights() -> int:
        return plan_for(tmp_path, "exact", dtype="float32").memory.weights_bytes

    tiny("gemma2", tie_word_embeddings=False).save_pretrained(tmp_path)
    whole = weights()
    assert whole == sum(
        value.nbytes for value in loaded(add_tokenizer(tmp_path), "exact", dtype="float32").parameters()
    )
    edit_config(tmp_path, tie_word_embeddings=True)
    assert weights() == whole
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, path, metadata={"format": "pt"})
    assert weights() == whole - embedding.nbytes
    del tensors["lm_head.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    edit_config(tmp_path, tie_word_embeddings=False)
    assert weights() == whole - embedding.nbytes
    path.write_bytes(b"no weights")
    assert weights() == whole  # the loader says what is wrong


@pytest.mark.parametrize("preset", ["exact", "memory"])
def test_shards_load_and_a_missing_or_damaged_one_is_named(preset: str, tmp_path: Path) -> None:
    tiny("gemma2").save_pretrained(tmp_path, max_shard_size="1MB")
    add_tokenizer(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    assert greedy(loaded(tmp_path, preset, dtype="float32"), 4)
    content = shards[1].read_bytes()
    shards[1].unlink()
    with pytest.raises(NotFoundError, match=f"missing, {shards[1].name}"):
        loaded(tmp_path, preset)
    shards[1].write_bytes(content[:1000])
    with pytest.raises(NotFoundError, match="cannot be loaded"):
        loaded(tmp_path, preset)
    shards[1].write_bytes(content)
    for damaged in ("{", "[]", '{"weight_map": 3}', "{}"):
        index.write_text(damaged)
        with pytest.raises(NotFoundError, match=r"index\.json is damaged") as caught:
            loaded(tmp_path, preset)
        assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt"])
def test_pickles_are_refused_and_the_reason_is_said(name: str, tmp_path: Path) -> None:
    model = tiny("gemma2")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / name)
    with pytest.raises(NotFoundError, match="pickle files can run code"):
        resolve(str(add_tokenizer(tmp_path)), revision=None, offline=True)


def test_the_program_refuses_them_with_exit_4(tmp_path: Path) -> None:
    tiny("gemma2").config.save_pretrained(tmp_path)
    (add_tokenizer(tmp_path) / "pytorch_model.bin").write_bytes(b"pickle")
    command = [sys.executable, "-m", "localgemma_cli", "-m", str(tmp_path), "hi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (4, "")
    assert "pickle files can run code" in done.stderr


def test_a_nested_config_is_the_text_half(tmp_path: Path) -> None:
    """Gemma 3 from 4b on is published with a vision tower; only its language half runs here."""
    text = tiny("gemma3_text")
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = Gemma3Config(
        text_config=text.config.to_dict(),
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=1,
    )
    whole = Gemma3ForConditionalGeneration(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert any(name.startswith("language_model.model.layers.0.") for name in names)
    for preset in ("exact", "memory"):
        assert plan_for(add_tokenizer(tmp_path), preset).model.architecture.layers == 3
    model = loaded(tmp_path, "exact", dtype="float32")
    assert torch.equal(logits(model), logits(text))
    assert greedy(model) == greedy(text)
    assert not any("vision" in name for name, _ in model.named_modules())
    quantized = loaded(tmp_path, "memory", dtype="float32")
    assert (logits(quantized) - logits(text)).abs().mean() < 0.5 * logits(text).abs().mean()
