"""What libraries raise while they load: one error that names the file, and nothing else on the terminal."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import DEMO
from support.program import Program

from localgemma_cli.backends.pytorch.backend import LocalBackend, load_backend
from localgemma_cli.errors import DoesNotFitError, NotFoundError
from localgemma_cli.models.load_errors import loading, suppress_panics
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
ROPE = {"rope_type": "none such", "rope_theta": 1e4}


def config(**more: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))

    return change


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def piped(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def folder_for(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


SPOILED = {
    "more layers": (config(num_hidden_layers=1000, layer_types=None), "Missing tensors: "),
    "fewer layers": (config(num_hidden_layers=4, layer_types=None), "more layers"),
    "vocabulary": (config(vocab_size=4096), r"embed_tokens in model\.safetensors has shape \[2048, 192\]"),
    "feed-forward": (config(intermediate_size=999_999), "gate_proj"),
    "heads": (config(num_attention_heads=12), "q_proj"),
    "odd heads": (config(head_dim=33), "head_dim"),
    "layer types": (config(layer_types=["full_attention"]), "layer_types"),
    "end token": (config(eos_token_id=[1, 5000]), "eos_token_id"),
    "activation": (config(hidden_activation="none such"), "none such"),
    "activation list": (config(hidden_activation=["a"]), "config.json.*hidden_activation"),
    "rope": (config(rope_parameters=ROPE), "none such"),
    "dtype": (config(dtype="none such"), "none such"),
    "skip list of numbers": (
        config(quantization_config={**INT8, "llm_int8_skip_modules": [1]}),
        "skip_modules",
    ),
    "compute type": (config(quantization_config={**NF4, "bnb_4bit_quant_storage": [1]}), "quant_storage"),
    "generation list": (written("generation_config.json", "[]"), r"generation_config\.json"),
    "generation eos": (written("generation_config.json", '{"eos_token_id": [[1]]}'), "eos_token_id"),
    "generation values": (written("generation_config.json", '{"eos_token_id": 1.5}'), "eos_token_id"),
    "tokenizer": (written("tokenizer.json", "[" * 20_000), "tokenizer"),
    "tokenizer null": (written("tokenizer.json", "null"), "tokenizer"),
    "tokenizer config": (written("tokenizer_config.json", "[]"), r"tokenizer_config\.json"),
    "tokenizer class": (written("tokenizer_config.json", '{"tokenizer_class": [1]}'), "tokenizer"),
    "special tokens": (written("special_tokens_map.json", "{"), r"special_tokens_map\.json"),
    "no text of a token": (written("special_tokens_map.json", '{"bos_token": {}}'), "bos_token"),
    "empty token": (written("special_tokens_map.json", '{"eos_token": ""}'), "eos_token"),
    "template number": (written("tokenizer_config.json", '{"chat_template": 5}'), "chat_template"),
    "template bytes": (
        lambda folder: (folder / "chat_template.jinja").write_bytes(b"{{ '\xff' }}"),
        "byte 4",
    ),
    "template size": (written("chat_template.jinja", "x" * 2_000_000), "larger than 1.0 MB"),
    "template folder": (folder_for("chat_template.jinja"), "it is a folder"),
    "template pipe": (piped("chat_template.json"), "regular file"),
    "config pipe": (piped("generation_config.json"), "regular file"),
    "config folder": (folder_for("config.json"), "it is a folder"),
    "weights pipe": (piped("model.safetensors"), "regular file"),
}


def loaded(folder: Path) -> LocalBackend:
    facts = resolve(str(folder), revision=None, offline=True).facts
    plan = make_plan(facts, "exact", probe("cpu"), Overrides(device="cpu"), load_presets(folder))
    return load_backend(plan, folder, lambda _: None)


@pytest.mark.parametrize("name", SPOILED)
def test_a_model_that_cannot_be_is_refused_with_what_is_wrong(name: str, tmp_path: Path) -> None:
    spoil, word = SPOILED[name]
    folder = tmp_path / "m"
    shutil.copytree(DEMO, folder)
    spoil(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NotFoundError, match=word) as caught:
        loaded(folder)
    assert str(folder) in caught.value.message
    assert "\n" not in caught.value.message
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 300e6  # torch among it


class Panic(BaseException):
    """As pyo3's PanicException, which is no Exception."""


@pytest.mark.parametrize(
    "error", [Panic("at"), AssertionError(), RecursionError("deep"), KeyError("x"), OSError(2, "no")]
)
def test_any_exception_of_a_library_names_the_file(error: BaseException, tmp_path: Path) -> None:
    with (
        pytest.raises(NotFoundError, match=r"tokenizer in .* cannot be loaded: .") as caught,
        loading("tokenizer", tmp_path),
    ):
        raise error
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), MemoryError(), DoesNotFitError("a", "b")]
)
def test_what_is_no_fault_of_the_file_passes(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, loading("model", tmp_path):
        raise error
    assert caught.value is error


def panic() -> None:
    os.write(2, b"thread panicked\n")
    raise Panic


def test_what_a_panic_writes_is_dropped_and_all_else_is_passed_on(capfd) -> None:
    with suppress_panics():
        os.write(2, b"a warning\n")
    with pytest.raises(Panic), suppress_panics():
        panic()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "a warning\nafter\n"


def test_a_panic_of_the_tokenizers_library_is_one_line(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(DEMO, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = program("prompt", "-m", str(folder), "hi")
    assert (done.returncode, done.stdout) == (4, "")
    message, hint = done.stderr.splitlines()
    assert message.startswith(f"localgemma: The tokenizer in {folder} cannot be loaded: ")
    assert hint
