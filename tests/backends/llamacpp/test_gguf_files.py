"""GGUF files of every kind on llama.cpp: the answers are those of the weights in the file."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support.checkpoints import logits, plan_for, prompt_ids, tiny
from support.gguf_models import F16, F32, POSITION_CASES, Q8_0, run_without, sharp, write_gguf
from support.models import DEMO, demo_tokenizer, own_tokenizer
from transformers import PreTrainedModel

from localgemma_cli.backends.llamacpp.backend import load_backend
from localgemma_cli.backends.llamacpp.completion import completion_request
from localgemma_cli.backends.llamacpp.parameters import server_parameters
from localgemma_cli.backends.llamacpp.process import LlamaProcess
from localgemma_cli.conversation import Message
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.gguf_config import gguf_config
from localgemma_cli.models.gguf_header import read_gguf
from localgemma_cli.models.resolve import resolve
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer
from localgemma_cli.sampling import Sampling


@functools.cache
def banned() -> list[int]:
    """Tokens that neither side writes: ends, and single bytes, which llama.cpp holds back."""
    tokenizer = demo_tokenizer()
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [at for at, name in enumerate(names) if name.startswith("<")]


def answer_ids(path: Path, tokens: int) -> list[int]:
    """The ids of llama.cpp's greedy answer."""
    process = LlamaProcess(server_parameters(plan_for(path, "speed"), path))
    process.load(lambda _: None)
    request = completion_request(prompt_ids()[0].tolist(), Sampling(temperature=0), tokens)
    process.send({**request, "logit_bias": [[token, False] for token in banned()]})
    ids: list[int] = []
    while True:
        reply = process.reply(60)
        assert reply is not None
        if isinstance(reply, list):
            ids.append(reply[0])
        elif "done" in reply:
            return ids


def shortfall(model: PreTrainedModel, tokens: list[int]) -> float:
    """How far below the best token of transformers the worst of these is, in deviations of the logits.

    llama.cpp multiplies in fewer bits, and the answers of random weights part at the first near tie.
    """
    prompt = prompt_ids()
    ids = torch.cat([prompt, torch.tensor([tokens])], dim=1)
    rows = logits(model, ids)[0, prompt.shape[1] - 1 : -1].clone()
    rows[:, banned()] = rows.min()
    behind = rows.max(dim=1).values - rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return float((behind / rows.std(dim=1)).max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    write_gguf(folder / "tiny.gguf", tiny("gemma2"), Q8_0)
    return folder / "tiny.gguf"


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("kind", [Q8_0, F16], ids=lambda kind: kind.name)
def test_greedy_tokens_are_those_of_the_weights_in_the_file(
    family: str, kind: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    reference = write_gguf(path, tiny(family), kind)
    tokens = answer_ids(path, 24)
    assert shortfall(reference, tokens) < 0.1
    assert len(set(tokens)) > 1


def test_a_head_of_its_own_is_taken(tmp_path: Path) -> None:
    reference = write_gguf(tmp_path / "m.gguf", tiny("gemma3_text", tie_word_embeddings=False), F16)
    assert shortfall(reference, answer_ids(tmp_path / "m.gguf", 24)) < 0.1


def test_the_vocabulary_in_the_file_is_a_whole_tokenizer(file: Path) -> None:
    ours, own = Prompter(load_tokenizer(file)), Prompter(own_tokenizer())
    for text in ("What does the memory preset do?", "naïve\n\n  two  spaces \t ☂ <end_of_turn>"):
        messages = [Message("user", text)]
        assert ours.text(messages) == own.text(messages)
        assert ours.encode(messages) == own.encode(messages)
    assert ours.stop_ids == own.stop_ids


def test_the_plan_is_of_the_weights_as_stored(file: Path) -> None:
    facts = resolve(str(file), revision=None, offline=True).facts
    config = json.loads((DEMO / "config.json").read_text())
    assert config["vocab_size"] == facts.architecture.vocabulary
    assert facts.architecture.softcap
    assert facts.architecture.sliding_window == 16
    plan = plan_for(file, "memory")
    assert plan.quantization == "gguf"
    assert any("GGUF Q8_0" in reason and "as it is stored" in reason for reason in plan.reasons)
    assert plan.to_dict()["model"]["stored"] == "GGUF Q8_0"  # type: ignore[index]


@pytest.mark.parametrize(("layers", "scalar"), [(46, 4608 // 32), (42, 128)])
def test_the_27b_scales_its_attention_by_its_hidden_width(layers: int, scalar: int, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma2")
    writer.add_block_count(layers)
    writer.add_embedding_length(4608)
    writer.add_head_count(32)
    writer.add_key_length(128)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf_config(read_gguf(tmp_path / "m.gguf"))["query_pre_attn_scalar"] == scalar


def test_what_is_no_gemma_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NotFoundError, match=r"not a Gemma.*llama"):
        resolve(str(tmp_path / "m.gguf"), revision=None, offline=True)


@pytest.mark.parametrize("damage", ["cut in the header", "cut in the weights", "no gguf", "empty"])
def test_a_damaged_file_is_refused(damage: str, file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    kept = {
        "cut in the header": content[:2000],
        "cut in the weights": content[: len(content) // 2],
        "no gguf": b"PK\x03\x04" * 50,
        "empty": b"",
    }[damage]
    path = tmp_path / "m.gguf"
    path.write_bytes(kept)
    with pytest.raises(NotFoundError, match=r"cannot be (read|loaded)") as caught:
        load_backend(plan_for(path, "exact"), path, lambda _: None)
    assert "\n" not in caught.value.message


def test_a_file_that_crashes_llama_cpp_is_refused_in_a_line(tmp_path: Path) -> None:
    """It aborts at a vocabulary that has a token twice, instead of returning an error."""

    def repeat_a_token(writer: gguf.GGUFWriter) -> None:
        add = writer.add_token_list
        writer.add_token_list = lambda tokens: add([*tokens[:300], tokens[301], *tokens[301:]])

    path = tmp_path / "m.gguf"
    write_gguf(path, tiny("gemma2"), Q8_0, repeat_a_token)
    with pytest.raises(NotFoundError, match=r"llama.cpp crashed \(SIGABRT\) while it loaded .*m\.gguf\.$"):
        load_backend(plan_for(path, "exact"), path, lambda _: None)


def test_other_files_and_split_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(NotFoundError, match="is not a GGUF file"):
        resolve(str(tmp_path / "model.bin"), revision=None, offline=True)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma2")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NotFoundError, match="one of 3 pieces"):
        resolve(str(tmp_path / "m.gguf"), revision=None, offline=True)


def test_without_the_package_the_error_names_the_extra(file: Path) -> None:
    done = run_without("xllamacpp", "-m", str(file), "-q", "hi")
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    assert "pip install 'localgemma-cli[gguf]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_whole_answer_through_the_program(file: Path) -> None:
    command = [sys.executable, "-m", "localgemma_cli", "--json", "-m", str(file)]
    done = subprocess.run(
        [*command, "--max-new-tokens", "4", "hi"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["plan"]["model"]["stored"] == "GGUF Q8_0"
    assert answer["usage"]["completion_tokens"] > 0


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
    if (family, name) == ("gemma2", "none"):
        pytest.skip("needs PyTorch, because llama.cpp scales there all the same")
    reference = write_gguf(tmp_path / "m.gguf", sharp(family, **settings), F32, edit)
    tokens = answer_ids(tmp_path / "m.gguf", 12)
    assert shortfall(reference, tokens) < 0.1
    if settings:
        plain = write_gguf(tmp_path / "plain.gguf", sharp(family), F32)
        assert shortfall(plain, tokens) > 0.2, "the setting must show"


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "yarn"),
        (lambda w: w.add_float32("gemma2.attention.scale", 0.2), "attention.scale"),
        (lambda w: w.add_rope_dimension_count(32), "rope.dimension_count"),
        (lambda w: w.add_float32("gemma2.rope.global.freq_base", 5.0), "rope.global.freq_base"),
        (lambda w: w.add_array("gemma2.attention.sliding_window_pattern", [True]), "1 of 3 layers"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(32, np.float32)), "rope_freqs"),
        (lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(256, np.float32)), "attn_q.bias"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_changes_the_answer_and_is_not_known_is_refused(
    edit: Callable[[gguf.GGUFWriter], None], match: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", tiny("gemma2"), F32, edit)
    with pytest.raises(NotFoundError, match=match) as caught:
        resolve(str(tmp_path / "m.gguf"), revision=None, offline=True)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("kind", ["gemma3n", "gemma4"])
def test_newer_gemmas_are_named_and_sent_to_safetensors(kind: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", kind)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NotFoundError, match=f"is a {kind}") as caught:
        resolve(str(tmp_path / "m.gguf"), revision=None, offline=True)
    assert "safetensors" in caught.value.hint


def test_a_file_without_weights_or_with_no_alignment_is_refused(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for edit in (lambda w: w.add_block_count(3), lambda w: w.add_uint32("general.alignment", 0)):
        writer = gguf.GGUFWriter(path, "gemma2")
        edit(writer)
        writer.add_embedding_length(64)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(NotFoundError):
            resolve(str(path), revision=None, offline=True)
