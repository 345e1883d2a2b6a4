"""GGUF files, written by the gguf package as llama.cpp's converter lays Gemma out."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support.checkpoints import dense_state, greedy, loaded, logits, plan_for, tiny
from support.models import DEMO, demo_tokenizer, own_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from localgemma_cli.conversation import Message
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.gguf_config import gguf_config
from localgemma_cli.models.gguf_header import read_gguf
from localgemma_cli.models.resolve import resolve
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer

ARCHITECTURES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
Q8_0, F16 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16


def gguf_name(name: str, family: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.weight"
    _, _, layer, inner = stem.split(".", 3)
    if inner == "post_attention_layernorm":
        return f"blk.{layer}.{'ffn_norm' if family == 'gemma' else 'post_attention_norm'}.weight"
    return f"blk.{layer}.{LAYER_NAMES[inner]}.weight"


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: gguf.GGMLQuantizationType,
    edit: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> PreTrainedModel:
    """Writes the file; returns the model with the weights that it holds, in float32."""
    config = model.config
    family = config.model_type
    writer = gguf.GGUFWriter(path, ARCHITECTURES[family])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if family != "gemma":
        writer.add_sliding_window(config.sliding_window)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if family == "gemma3_text":
        writer.add_rope_freq_base(1_000_000.0)
    edit(writer)
    add_vocabulary(writer)
    held = {}
    for name, weight in dense_state(model).items():
        if "norm" in name:
            writer.add_tensor(gguf_name(name, family), weight.float().numpy() + 1)
            held[name] = (weight.float() + 1) - 1
            continue
        data = gguf.quantize(weight.float().numpy(), kind)
        writer.add_tensor(gguf_name(name, family), data, raw_dtype=kind)
        held[name] = torch.from_numpy(np.array(gguf.dequantize(data, kind), np.float32)).view(weight.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    reference.load_state_dict(held, strict=False)
    reference.tie_weights()
    return reference.eval()


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokenizer = demo_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    kinds = [
        gguf.TokenType.CONTROL
        if token in special
        else gguf.TokenType.BYTE
        if token.startswith("<0x")
        else gguf.TokenType.NORMAL
        for token in tokens
    ]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template(tokenizer.chat_template)


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
    model = loaded(path, "exact", dtype="float32")
    assert torch.allclose(logits(model), logits(reference), atol=1e-5)
    tokens = greedy(model, 32)
    assert tokens == greedy(reference, 32)
    assert len(set(tokens)) > 2


def test_they_are_transformers_own_where_it_loads_the_file(file: Path) -> None:
    """Its own loader knows Gemma 2 and 3, not 1; and it leaves out how attention is scaled."""
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    config.query_pre_attn_scalar = 64
    reference = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    model = loaded(file, "exact", dtype="float32")
    assert torch.allclose(logits(model), logits(reference), atol=1e-5)
    assert greedy(model) == greedy(reference)


def test_a_head_of_its_own_is_taken(tmp_path: Path) -> None:
    reference = write_gguf(tmp_path / "m.gguf", tiny("gemma2", tie_word_embeddings=False), F16)
    assert torch.allclose(
        logits(loaded(tmp_path / "m.gguf", "exact", dtype="float32")), logits(reference), atol=1e-5
    )


def test_the_vocabulary_in_the_file_is_a_whole_tokenizer(file: Path) -> None:
    ours, own = Prompter(load_tokenizer(file)), Prompter(own_tokenizer())
    for text in ("What does the memory preset do?", "naïve\n\n  two  spaces \t ☂ <end_of_turn>"):
        messages = [Message("user", text)]
        assert ours.text(messages) == own.text(messages)
        assert ours.encode(messages) == own.encode(messages)
    assert ours.stop_ids == own.stop_ids


def test_the_plan_is_of_the_unpacked_weights(file: Path) -> None:
    facts = resolve(str(file), revision=None, offline=True).facts
    config = json.loads((DEMO / "config.json").read_text())
    assert config["vocab_size"] == facts.architecture.vocabulary
    assert facts.architecture.softcap
    assert facts.architecture.sliding_window == 16
    plan = plan_for(file, "memory", quantization="nf4")
    assert plan.quantization == "none"
    assert any("GGUF Q8_0" in reason and "unpacked" in reason for reason in plan.reasons)
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
        loaded(path, "exact", dtype="float32")
    assert "\n" not in caught.value.message


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


HIDDEN = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *more: None if name == "gguf" else find(name, *more)
from localgemma_cli.__main__ import main
sys.exit(main())
"""


def run(*arguments: str, hidden: bool = False) -> subprocess.CompletedProcess[str]:
    how = ["-c", HIDDEN] if hidden else ["-m", "localgemma_cli"]
    return subprocess.run([sys.executable, *how, *arguments], capture_output=True, text=True, timeout=600)


def test_without_the_package_the_error_names_the_extra(file: Path) -> None:
    done = run("-m", str(file), "-q", "hi", hidden=True)
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    assert "pip install 'localgemma-cli[gguf]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_whole_answer_through_the_program(file: Path) -> None:
    done = run("-m", str(file), "--json", "--max-new-tokens", "4", "hi")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["plan"]["model"]["stored"] == "GGUF Q8_0"
    assert answer["usage"]["completion_tokens"] > 0


def sharp(family: str, **more: object) -> PreTrainedModel:
    """Attention that looks somewhere: what it sees then depends on the positions."""
    model = tiny(
        family, num_hidden_layers=6, sliding_window=4, **copy.deepcopy(more)
    )  # transformers adds to it
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(2.0)
            elif name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(2.0)
    return model


LINEAR = {"rope_type": "linear", "factor": 8.0}
SAYINGS = {  # what the file says, and config.json would
    "linear": (
        {"rope_scaling": LINEAR},
        lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), w.add_rope_scaling_factor(8.0)),
    ),
    "linear unnamed": ({"rope_scaling": LINEAR}, lambda w: w.add_rope_scaling_factor(8.0)),
    "linear of old": ({"rope_scaling": LINEAR}, lambda w: w.add_float32(f"{w.arch}.rope.scale_linear", 8.0)),
    "none": (
        {},
        lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.NONE), w.add_rope_scaling_factor(8.0)),
    ),
    "pattern": (
        {"layer_types": [*["sliding_attention"] * 2, "full_attention"] * 2},
        lambda w: w.add_uint32(f"{w.arch}.attention.sliding_window_pattern", 3),
    ),
    "flags": (
        {"layer_types": [*["full_attention"] * 3, *["sliding_attention"] * 3]},
        lambda w: w.add_array(f"{w.arch}.attention.sliding_window_pattern", [False] * 3 + [True] * 3),
    ),
}
LOCAL = (
    {"rope_local_base_freq": 500.0},
    lambda w: w.add_float32("gemma3.rope.freq_base_swa", 500.0),
)
CASES = [
    (family, name, *saying)
    for family in ("gemma2", "gemma3_text")
    for name, saying in (SAYINGS | ({"local": LOCAL} if family == "gemma3_text" else {})).items()
]


@pytest.mark.parametrize(("family", "name", "settings", "edit"), CASES, ids=lambda each: str(each)[:20])
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
    write_gguf(tmp_path / "m.gguf", tiny("gemma2"), F16, edit)
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
