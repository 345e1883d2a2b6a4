"""GGUF files that PyTorch runs: unquantized ones with `exact`, and those that llama.cpp does not support."""

import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from support.checkpoints import greedy, loaded, logits, plan_for, tiny
from support.gguf_models import F16, POSITION_CASES, Q8_0, sharp, write_gguf
from transformers import AutoConfig, AutoModelForCausalLM

from localgemma_cli.errors import NotFoundError


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_greedy_tokens_are_those_of_the_weights_in_the_file(family: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    reference = write_gguf(path, tiny(family), F16)
    model = loaded(path, "exact", dtype="float32")
    assert torch.allclose(logits(model), logits(reference), atol=1e-5)
    tokens = greedy(model, 32)
    assert tokens == greedy(reference, 32)
    assert len(set(tokens)) > 2


@pytest.mark.parametrize("kind", [Q8_0, F16], ids=lambda kind: kind.name)
def test_a_head_of_its_own_is_taken(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    reference = write_gguf(path, tiny("gemma2", tie_word_embeddings=False), kind)
    assert torch.allclose(logits(loaded(path, "exact", dtype="float32")), logits(reference), atol=1e-5)


def test_they_are_transformers_own_where_it_loads_the_file(tmp_path: Path) -> None:
    """Its own loader knows Gemma 2 and 3, not 1; and it leaves out how attention is scaled."""
    path = tmp_path / "m.gguf"
    write_gguf(path, tiny("gemma2"), F16)
    config = AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    config.query_pre_attn_scalar = 64
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    model = loaded(path, "exact", dtype="float32")
    assert torch.allclose(logits(model), logits(reference), atol=1e-5)
    assert greedy(model) == greedy(reference)


@pytest.mark.parametrize(
    ("family", "name", "settings", "edit"), POSITION_CASES, ids=lambda each: str(each)[:20]
)
def test_what_a_file_says_of_positions_is_as_a_config_says_it(
    family: str,
    name: str,
    settings: dict[str, object],
    edit: Callable[[gguf.GGUFWriter], None],
    tmp_path: Path,
) -> None:
    reference = write_gguf(tmp_path / "m.gguf", sharp(family, **settings), F16, edit)
    model = loaded(tmp_path / "m.gguf", "exact", dtype="float32")
    assert torch.allclose(logits(model), logits(reference), atol=1e-4)
    if settings:
        plain = write_gguf(tmp_path / "plain.gguf", sharp(family), F16)
        assert not torch.allclose(logits(model), logits(plain), atol=1e-3), "the setting must show"


def test_the_plan_says_which_engine_runs_a_file_and_why(tmp_path: Path) -> None:
    plain, headed, quantized, scaled = (tmp_path / f"{at}.gguf" for at in range(4))
    write_gguf(plain, tiny("gemma2"), F16)
    write_gguf(headed, tiny("gemma2", tie_word_embeddings=False), Q8_0)
    write_gguf(quantized, tiny("gemma2"), Q8_0)
    _, _, _, switched_off = next(each for each in POSITION_CASES if each[:2] == ("gemma2", "none"))
    write_gguf(scaled, tiny("gemma2"), Q8_0, switched_off)
    expected = {
        (plain, "exact"): "exact gives the tokens of transformers",
        (plain, None): "exact gives the tokens of transformers",
        (plain, "speed"): None,
        (plain, "memory"): None,
        (headed, "speed"): "llama.cpp does not support a gemma2 with an output head of its own",
        (scaled, "memory"): "llama.cpp does not support a gemma2 with a RoPE factor",
        (quantized, "exact"): None,
    }
    for (path, preset), reason in expected.items():
        plan = plan_for(path, preset)
        assert (plan.quantization == "gguf") == (reason is None)
        shown = "\n".join(plan.reasons)
        assert ("PyTorch runs the file" in shown) == bool(reason)
        assert (reason or "llama.cpp runs the file as it is stored") in shown


def test_without_the_package_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf", tiny("gemma2"), F16)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(NotFoundError, match="need the package gguf") as caught:
        loaded(tmp_path / "m.gguf", "exact")
    assert "pip install 'localgemma-cli[gguf]'" in caught.value.hint
