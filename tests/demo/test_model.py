"""The bundled model is a plain Gemma 2 that loads with the plain Auto classes."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from safetensors import safe_open

from localgemma_cli.models.catalog import demo_folder

WEIGHTS = demo_folder() / "model.safetensors"


def read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((demo_folder() / name).read_text("utf-8"))
    return values


def test_it_is_small_and_bf16() -> None:
    assert WEIGHTS.stat().st_size <= 5_000_000
    with safe_open(WEIGHTS, "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_the_head_is_tied() -> None:
    with safe_open(WEIGHTS, "pt") as weights:
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118
    assert read("config.json")["tie_word_embeddings"] is True


def test_the_configuration_is_gemma_2s() -> None:
    config = read("config.json")
    assert config["architectures"] == ["Gemma2ForCausalLM"]
    assert config["attn_logit_softcapping"] == 50.0
    assert config["final_logit_softcapping"] == 30.0
    assert config["max_position_embeddings"] == 1024
    # A chat of a few turns has to leave the window, or the demo would prove nothing about it.
    assert config["sliding_window"] == 64
    assert set(config["layer_types"]) == {"sliding_attention", "full_attention"}


def test_it_stops_at_the_end_of_a_turn() -> None:
    assert read("generation_config.json")["eos_token_id"] == [1, 107]


def test_nothing_but_data_is_bundled() -> None:
    names = {path.name for path in demo_folder().iterdir()}
    assert names == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_folder())


def test_the_template_gives_bos_once(tokenizer: Any) -> None:
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)[
        "input_ids"
    ]
    assert ids[:2] == [2, 106]
    assert ids.count(2) == 1
    assert ids[-1] == 108


def test_the_template_refuses_a_system_role(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    with pytest.raises(jinja2.TemplateError, match="System role"):
        tokenizer.apply_chat_template(messages)


def test_the_template_wants_turns_to_alternate(tokenizer: Any) -> None:
    with pytest.raises(jinja2.TemplateError, match="alternate"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


def test_the_vocabulary_fits_the_embedding(tokenizer: Any) -> None:
    assert len(tokenizer) == read("config.json")["vocab_size"]


def test_it_loads_and_answers() -> None:
    from localgemma_cli.demo.evaluate import program_answers

    answer = program_answers(demo_folder())
    assert "Google" in answer([{"role": "user", "content": "Who made Gemma?"}])


def test_a_finished_folder_replaces_the_old_one(tmp_path: Path) -> None:
    from localgemma_cli.demo.train import replace_folder

    old, new = tmp_path / "model", tmp_path / "new"
    for folder, text in ((old, "old"), (new, "new")):
        folder.mkdir()
        (folder / "file").write_text(text)
    replace_folder(new, old)
    assert (old / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
