"""Any content of a model's or a user's files ends in an answer or in one error that names what is wrong.

A few examples of each door run always. LOCALGEMMA_FUZZ=2000 runs so many of each.
"""

import io
import json
import os
import re
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.models import DEMO

from localgemma_cli.cli import run
from localgemma_cli.environment import Streams

FULL = int(os.environ.get("LOCALGEMMA_FUZZ", "0"))
HANG = 60  # seconds; on a machine that is busy with other things as well
GROWTH = 200_000_000  # bytes
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

NUMBERS = ["0", "-1", "1", "2", "3", "33", "1.5", "1e-40", "1e308", "1e999", "-0.0", "10000000000"]
NUMBERS += ["9" * 25, "9" * 400, "-" + "9" * 5000, "NaN", "Infinity", "-Infinity", "1000000000"]
TEXTS = [
    '""',
    '"x"',
    r'"\u001b]52;c;UFdO\u0007"',
    r'"\ud83d"',
    '"%s"' % ("x" * 5000),
    r'"\u0000"',
    '"../../x"',
]
OTHERS = ["null", "true", "false", "[]", "{}", "[[1]]", "[null]", '[1,"x"]', '{"a":1}', '{"a":{"b":[null]}}']
DEEP = ["[" * 10_000, "[" * 300 + "]" * 300, '{"a":' * 500 + "1" + "}" * 500]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
HOSTILE = st.sampled_from(NUMBERS + TEXTS + OTHERS + DEEP) | JSON.map(json.dumps)


@dataclass(frozen=True)
class Done:
    """`growth`: of the resident memory at its peak, in bytes; 0 where the system does not tell."""

    code: int
    stderr: str
    seconds: float
    growth: int


def memory(key: str) -> int:
    """Of this process, in bytes, from Linux' own count."""
    if not sys.platform.startswith("linux"):
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def program(*words: str) -> Done:
    """As `main` runs it, in this process."""
    stdin, stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(3))
    if sys.platform.startswith("linux"):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before, start = memory("VmRSS"), time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in (("stdin", stdin), ("stdout", stdout)):
            patch.setattr(sys, name, stream)
        code = run(words, Streams(stdin, stdout, stderr))
    stderr.flush()
    told = stderr.buffer.getvalue().decode()  # type: ignore[attr-defined]
    return Done(code, told, time.monotonic() - start, memory("VmHWM") - before)


def require_one_error(done: Done, codes: tuple[int, ...]) -> None:
    told = done.stderr
    assert done.code in codes, (done.code, told)
    assert done.seconds < HANG
    assert done.growth < GROWTH
    assert "Unexpected error" not in told
    assert "Traceback" not in told
    assert not CONTROL.search(told), repr(told)
    if done.code:
        message, hint = told.splitlines()  # one line what happened, one what to do, and nothing else
        assert message.startswith("localgemma: ")
        assert hint.startswith("  ")
        assert len(message) < 700


def examples(few: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=FULL or few,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of its own with a copy of the demo in it, and no network."""
    folder = tmp_path_factory.mktemp("doors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALGEMMA_HOME", str(folder / "home"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        (folder / "home" / "config" / "presets").mkdir(parents=True)
        shutil.copytree(DEMO, folder / "m")
        yield folder


@pytest.fixture(autouse=True)
def warm(folder: Path) -> None:
    """What any run takes once, such as torch, is no growth."""
    assert answer(folder).code == 0


def paths_in(value: object, depth: int = 3) -> list[tuple[str | int, ...]]:
    """Of every place in a JSON value, of long lists and tables the first few."""
    inner: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())[:40]
    elif isinstance(value, list):
        inner = list(enumerate(value))[:3]
    below = [(key, *path) for key, each in inner for path in paths_in(each, depth - 1)] if depth else []
    return [(), *below]


@st.composite
def mutated(draw: st.DrawFn, base: dict[str, Any], more: tuple[str, ...] = (), raws: Any = HOSTILE) -> bytes:
    """A JSON file with one or two values replaced, removed or added, or damaged as bytes."""
    copy = json.loads(json.dumps(base))
    texts: list[str] = []
    places = [*paths_in(base)[1:], *((key,) for key in more)]
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(places))
        owner = copy
        for key in way:
            owner = owner[key] if isinstance(owner, dict | list) and not isinstance(owner, str) else {}
        if isinstance(owner, dict | list) and not (isinstance(owner, list) and last >= len(owner)):  # type: ignore[operator]
            owner[last] = f"@{len(texts)}@"
            texts.append(draw(raws))
    text = json.dumps(copy)
    for number, raw in enumerate(texts):
        text = text.replace(f'"@{number}@"', raw)
    return draw(damaged(text.encode("utf-8", "surrogatepass")))


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Mostly as it is; else cut, with a mark or bytes that are no text, or something else altogether."""
    at = draw(st.integers(0, len(data)))
    match draw(st.integers(0, 19)):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at:]
        case 2:
            return b"\xef\xbb\xbf" + data
        case 3:
            return draw(
                st.sampled_from([b"", b"[]", b"null", b"[" * 10_000, b'"x"', b"9" * 5000, b"\0" * 64])
            )
    return data


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


def answer(folder: Path) -> Done:
    return program("-m", str(folder / "m"), "--no-save", "--temperature", "0", "--max-new-tokens", "2", "hi")


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


TOML = [
    "inf",
    "-inf",
    "nan",
    "0",
    "-1",
    "1e308",
    "9" * 400,
    "9" * 5000,
    "0x" + "f" * 9000,
    "true",
    '"x"',
    "[]",
]
TOML += [
    "{}",
    "[[1]]",
    "1979-05-27",
    "1979-05-27T07:32:00Z",
    '""',
    '"\\u001b]0;x\\u0007"',
    "{ a = { b = 1 } }",
]
TOML += [
    "[" * 2_000,
    "[" * 200 + "]" * 200,
    '"%s"' % ("x" * 5000),
    "'''\n\x1b'''",
    "1.5",
    "-9223372036854775809",
]
VALUES = st.sampled_from(TOML)
OPTIONS = ["model", "preset", "temperature", "top-p", "top-k", "seed", "max-new-tokens", "json", "context"]
OPTIONS += [
    "device",
    "device-memory",
    "template",
    "endpoint",
    "offline",
    "system",
    "mode",
    "compile",
    "nothing",
]
SETTINGS = ["dtype", "quantization", "nested_quantization", "attention", "cache", "compile", "offload"]
SETTINGS += ["assistant", "compact", "inherits", "summary", "cuda", "cpu", "other"]
OWN = ["repository", "revision", "template", "adapter", "endpoint", "system", "sampling", "more"]
NUMBER_KEYS = ["temperature", "top-p", "top_k", "min-p", "repetition-penalty", "seed", "max-new-tokens", "x"]


@st.composite
def user_file(draw: st.DrawFn) -> tuple[str, bytes]:
    """A name in the config folder, and what it holds."""
    name = draw(st.sampled_from(["config.toml", "models.toml", "presets/own.toml"]))
    value = draw(VALUES)
    if name == "config.toml":
        text = f"{draw(st.sampled_from(OPTIONS))} = {value}"
    elif name == "models.toml":
        inner = draw(st.sampled_from(NUMBER_KEYS))
        text = draw(st.sampled_from([
            f"[mine]\nrepository = 'demo'\n{draw(st.sampled_from(OWN))} = {value}",
            f"[mine]\nrepository = 'demo'\nsampling = {{ {inner} = {value} }}",
            f"mine = {value}",
            f'["{draw(st.text(max_size=5))}"]\nrepository = {value}',
        ]))  # fmt: skip
    else:
        key = draw(st.sampled_from(SETTINGS))
        text = draw(st.sampled_from([f'inherits = "exact"\n{key} = {value}', f"[cpu]\n{key} = {value}"]))
    return name, draw(damaged(text.encode("utf-8", "surrogatepass")))


@examples(100)
@given(file=user_file())
def test_any_file_of_the_user_s_own_is_read_or_refused(file: tuple[str, bytes], folder: Path) -> None:
    name, data = file
    path = folder / "home" / "config" / name
    path.write_bytes(data)
    try:
        require_one_error(program("plan", "-m", "mine" if name == "models.toml" else "demo"), (0, 2, 4, 5))
    finally:
        path.unlink()
