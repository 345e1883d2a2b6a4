"""Any content of a model's files ends in an answer, or in one error that names what is wrong.

A few examples of each file run always; LOCALGEMMA_FUZZ=2000 runs that many of each.
"""

import json
import shutil
import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from support.fuzzing import HOSTILE, answer, examples, mutated, program, require_one_error
from support.models import DEMO

CONFIG = json.loads((DEMO / "config.json").read_text())
CONFIG_KEYS = ("text_config", "quantization_config", "rope_scaling", "num_labels", "id2label", "auto_map")
CONFIG_KEYS += ("sliding_window_pattern", "torch_dtype", "vision_config", "tie_word_embeddings", "hidden_act")
FAMILIES = st.sampled_from(["gemma", "gemma2", "gemma3_text", "gemma4_text", "gemma3"])


@examples(60)
@given(
    data=mutated(CONFIG, CONFIG_KEYS)
    | FAMILIES.flatmap(
        lambda family: mutated({**CONFIG, "model_type": family, "architectures": None}, CONFIG_KEYS)
    )
)
def test_any_config_is_planned_or_refused(data: bytes, folder: Path) -> None:
    (folder / "m" / "config.json").write_bytes(data)
    try:
        require_one_error(program("plan", "-m", str(folder / "m")), (0, 4))
        require_one_error(program("plan", "-m", str(folder / "m"), "--force"), (0, 4))
    finally:
        shutil.copy(DEMO / "config.json", folder / "m")


@examples(25)
@given(data=mutated(CONFIG, CONFIG_KEYS))
def test_any_config_gives_an_answer_or_is_refused(data: bytes, folder: Path) -> None:
    (folder / "m" / "config.json").write_bytes(data)
    try:
        require_one_error(answer(folder), (0, 4, 6))  # 6: a context of one token holds no prompt
    finally:
        shutil.copy(DEMO / "config.json", folder / "m")


@examples(25)
@given(
    data=mutated(json.loads((DEMO / "generation_config.json").read_text()), ("temperature", "cache_config"))
)
def test_any_generation_config_gives_an_answer_or_is_refused(data: bytes, folder: Path) -> None:
    (folder / "m" / "generation_config.json").write_bytes(data)
    try:
        require_one_error(answer(folder), (0, 4))
    finally:
        shutil.copy(DEMO / "generation_config.json", folder / "m")


TOKENIZER_CONFIG = json.loads((DEMO / "tokenizer_config.json").read_text())
TOKENIZER_KEYS = ("chat_template", "added_tokens_decoder", "additional_special_tokens", "auto_map", "legacy")
TOKENIZER_KEYS += ("model_input_names", "padding_side", "sp_model_kwargs", "is_local", "tokenizer_file")


@examples(60)
@given(
    name=st.sampled_from(["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]),
    data=mutated(TOKENIZER_CONFIG, TOKENIZER_KEYS),
)
def test_any_tokenizer_config_shows_a_prompt_or_is_refused(name: str, data: bytes, folder: Path) -> None:
    (folder / "m" / name).write_bytes(data)
    try:
        require_one_error(program("prompt", "-m", str(folder / "m"), "hi <eos> ünd 東京"), (0, 2, 4))
    finally:
        (folder / "m" / name).unlink()
        shutil.copy(DEMO / "tokenizer_config.json", folder / "m")


TOKENIZER = json.loads((DEMO / "tokenizer.json").read_text())
PARTS = [
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": ""},
    {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Replace", "pattern": {"Regex": ".*"}, "content": ""},
    {"type": "Prepend", "prepend": ""},
    {"type": "ByteLevel"},
    {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 9, "decoders": [], "pretokenizers": []},
    {"type": "WordPiece", "unk_token": "none", "vocab": {}, "max_input_chars_per_word": 0},
    {"type": "Unigram", "unk_id": 5, "vocab": []},
    {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]], "byte_fallback": True},
    {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "zz"},
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
    {
        "strategy": {"Fixed": 10**9},
        "direction": "Right",
        "pad_to_multiple_of": 0,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    },
    {"max_length": 0, "strategy": "LongestFirst", "stride": 9, "direction": "Right"},
    {"type": "Strip", "content": "", "start": 10**9, "stop": 10**9},
    {"type": "Metaspace", "replacement": "ab", "prepend_scheme": "first"},
]
PART_TEXTS = st.sampled_from([json.dumps(part) for part in PARTS]) | HOSTILE


@examples(60)
@given(data=mutated(TOKENIZER, raws=PART_TEXTS))
def test_any_tokenizer_shows_a_prompt_or_is_refused(data: bytes, folder: Path) -> None:
    (folder / "m" / "tokenizer.json").write_bytes(data)
    try:
        require_one_error(program("prompt", "-m", str(folder / "m"), "hi <eos> ünd 東京"), (0, 2, 4))
    finally:
        shutil.copy(DEMO / "tokenizer.json", folder / "m")


WEIGHTS = (DEMO / "model.safetensors").read_bytes()
LENGTH = int.from_bytes(WEIGHTS[:8], "little")
HEADER = json.loads(WEIGHTS[8 : 8 + LENGTH])
SHORT = {name: HEADER[name] for name in list(HEADER)[:12]}
LENGTHS = st.sampled_from([None, None, None, None, 0, 1, 2**63, 2**64 - 1, 100_000_001, 7])


@examples(25)
@given(start=mutated(SHORT, ("__metadata__", "x")), length=LENGTHS)
def test_any_header_of_weights_gives_an_answer_or_is_refused(
    start: bytes, length: int | None, folder: Path
) -> None:
    said = (len(start) if length is None else length).to_bytes(8, "little")
    path = folder / "m" / "model.safetensors"
    path.write_bytes(said + start)
    with path.open("r+b") as file:
        file.truncate(len(start) + len(WEIGHTS) - LENGTH)
    try:
        require_one_error(program("plan", "-m", str(folder / "m")), (0, 4))
        require_one_error(answer(folder), (0, 4))
    finally:
        path.write_bytes(WEIGHTS)


@examples(25)
@given(data=mutated({"metadata": {"total_size": 9}, "weight_map": {"a": "model-1.safetensors", "b": "x"}}))
def test_any_index_of_weights_is_refused(data: bytes, folder: Path) -> None:
    index, path = folder / "m" / "model.safetensors.index.json", folder / "m" / "model.safetensors"
    index.write_bytes(data)
    path.unlink()
    try:
        require_one_error(program("plan", "-m", str(folder / "m")), (0, 4))
        require_one_error(answer(folder), (4,))
    finally:
        index.unlink()
        path.write_bytes(WEIGHTS)


ADAPTER = {
    "peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "demo", "use_dora": False,
    "target_modules": ["q_proj", "v_proj"], "modules_to_save": None, "rank_pattern": {"x": 4},
    "layer_replication": None, "bias": "none", "alpha_pattern": {}, "task_type": "CAUSAL_LM",
}  # fmt: skip


@examples(60)
@given(data=mutated(ADAPTER, ("layers_to_transform", "loftq_config", "eva_config", "megatron_config")))
def test_any_adapter_config_is_planned_or_refused(data: bytes, folder: Path) -> None:
    (folder / "a").mkdir(exist_ok=True)
    (folder / "a" / "adapter_config.json").write_bytes(data)
    require_one_error(program("plan", "-m", str(folder / "m"), "--adapter", str(folder / "a")), (0, 2, 4))
    require_one_error(program("plan", "-m", str(folder / "a")), (0, 2, 4))


def gguf_header() -> bytes:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    values = [text(b"general.architecture") + struct.pack("<I", 8) + text(b"gemma2")]
    for key in (b"block_count", b"embedding_length", b"feed_forward_length", b"attention.head_count"):
        values.append(text(b"gemma2." + key) + struct.pack("<II", 4, 8))
    values.append(text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"b"))
    values.append(text(b"general.alignment") + struct.pack("<II", 4, 32))
    tensor = text(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 4, 0, 0)
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values)) + b"".join(values) + tensor
    return start + b"\0" * 256


GGUF = gguf_header()
PIECES = st.sampled_from([struct.pack("<Q", each) for each in (0, 1, 2**32, 2**63, 2**64 - 1, 10**7)])
PIECES |= st.sampled_from([struct.pack("<I", each) for each in (0, 8, 9, 99, 2**31, 2**32 - 1)])
PIECES |= st.binary(min_size=1, max_size=16)


@examples(60)
@given(
    places=st.lists(st.tuples(st.integers(4, len(GGUF) - 257), PIECES), min_size=1, max_size=3),
    cut=st.none() | st.integers(0, len(GGUF)),
)
def test_any_gguf_is_planned_or_refused(
    places: list[tuple[int, bytes]], cut: int | None, folder: Path
) -> None:
    data = GGUF
    for at, piece in places:
        data = data[:at] + piece + data[at + len(piece) :]
    path = folder / "m.gguf"
    path.write_bytes(data[:cut])
    require_one_error(program("plan", "-m", str(path)), (0, 4))
