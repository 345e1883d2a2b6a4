"""The tokenizer in a GGUF file has the ids that transformers reads from the same file."""

import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from support.real_gguf import BareLlama
from transformers import AutoTokenizer

from localgemma_cli.errors import NotFoundError
from localgemma_cli.prompts import partial_bpe
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer

NORMAL, CONTROL, USER, BYTE = 1, 3, 4, 6
LETTERS = [*"abcdefghijklmnopqrstuvwxyz.,!<>/_0123456789\u2581\n", "é", "東"]
# In the order in which they merge; a run of spaces is stored as spaces, by llama.cpp's converter.
PIECES = [
    "th",
    "he",
    "the",
    "\u2581t",
    "\u2581the",
    "in",
    "ing",
    "an",
    "and",
    "\n\n",
    "th\u2581",
    "hea",
    "at",
]
SPACES, MARKS = ["  ", "   "], ["<html>", "</html>"]
TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *SPACES, *MARKS]
TYPES = [CONTROL] * 6 + [USER] * 4
TOKENS += [f"<0x{byte:02X}>" for byte in range(256)] + LETTERS + PIECES
TYPES += [BYTE] * 256 + [NORMAL] * len(LETTERS + PIECES)
TEXTS = (
    "",
    "the thing and then heat",
    "the  the   the \u2581\u2581the",
    " the\n\n\nin 東京 é😀 <html>at</html> <end_of_turn><0x41>",
    "theheatthingandthe" * 9,
)


def write(path: Path, edit: Callable[[gguf.GGUFWriter], None] = lambda _: None, kind: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types(TYPES)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    edit(writer)
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length"):
        writer.add_uint32(f"gemma3.{key}", 8)
    writer.add_head_count(2)
    writer.add_tensor("token_embd.weight", np.zeros((len(TOKENS), 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def require_equal(path: Path) -> None:
    ours = load_tokenizer(path)
    reference = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        ids = reference.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == text.replace("\u2581", " ")
    own = {name: reference.special_tokens_map[name] for name in ours.names}
    assert dict(ours.names) == own
    added = {each.content: each.special for each in reference.added_tokens_decoder.values()}
    matched = {name: special for name, special in ours.added_tokens.items() if set(name) != {"\u2581"}}
    assert matched == {name: special for name, special in added.items() if name != "<mask>"}
    assert (ours.id_of(ours.bos), ours.eos_id) == (2, 1)


def test_merges_follow_from_the_order_of_the_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    require_equal(path)
    ours = load_tokenizer(path)
    assert ours.encode("the") == [TOKENS.index("the")]
    assert ours.encode("a  b") == [TOKENS.index(each) for each in ("a", "  ", "b")]
    assert ours.encode("<html>") == [TOKENS.index("<html>")]


def test_merges_are_read_where_the_file_lists_them(tmp_path: Path) -> None:
    merges = ["i n", "in g", "t h", "th e"]
    path = write(tmp_path / "m.gguf", lambda writer: writer.add_token_merges(merges), "gemma4")
    require_equal(path)
    assert load_tokenizer(path).encode("and") == [TOKENS.index(each) for each in "and"]


def test_the_chat_template_is_the_files(tmp_path: Path) -> None:
    assert load_tokenizer(write(tmp_path / "m.gguf")).template is None
    path = write(tmp_path / "t.gguf", lambda writer: writer.add_chat_template("{{ messages }}"))
    assert load_tokenizer(path).template == "{{ messages }}"


def test_the_gguf_package_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert load_tokenizer(path).size == len(TOKENS)


@pytest.mark.parametrize(
    ("kind", "edit", "match"),
    [
        ("gpt2", lambda _: None, "tokenizer.ggml.model"),
        ("gemma4", lambda _: None, "tokenizer.ggml.merges"),
        ("llama", lambda w: w.add_bos_token_id(10**6), "IndexError"),
        ("llama", lambda w: w.add_token_list([1.0] * 2000), "tokenizer.ggml.tokens"),
    ],
    ids=["kind", "no merges", "an id beyond the vocabulary", "tokens that are numbers"],
)
def test_a_vocabulary_that_is_not_gemmas_is_refused(
    kind: str, edit: Callable[[gguf.GGUFWriter], None], match: str, tmp_path: Path
) -> None:
    def rewrite(writer: gguf.GGUFWriter) -> None:
        for values in writer.kv_data:
            values.pop("tokenizer.ggml.bos_token_id", None)
            if "IndexError" not in match and kind == "llama":
                values.pop("tokenizer.ggml.tokens", None)
        edit(writer)

    path = write(tmp_path / "m.gguf", rewrite, kind)
    with pytest.raises(NotFoundError, match=match) as caught:
        load_tokenizer(path)
    assert str(path) in caught.value.message


def real_texts() -> list[str]:
    """Prose, code, numbers, scripts, emoji, runs of spaces and newlines, look-alikes of control tokens."""
    words = (
        "The quick brown fox",
        "naïve café",
        "東京タワー",
        "Привет, мир",
        "مرحبا بالعالم",
        "שלום עולם",
        "नमस्ते दुनिया",
        "สวัสดี",
        "안녕하세요",
        "Ελληνικά",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "ﷺ\u0301 e\u0301",
        "𒐫𓀀",
        "1234567890",
        "3.14159e-10",
        "0x7fFF",
        "def f(x):\n\treturn x**2",
        "<html><b>a</b></html>",
        "<start_of_turn>user",
        "<bos>",
        "<eos>",
        "<unused7>",
        "[multimodal]",
        "<0x41>",
        "a\u00a0b\u2003c",
        "\ufeffz",
        "don't WON'T",
        "ZZZZZZZZ",
        "{'a': [1, 2]}",
        "https://example.org/a?b=c#d",
        "\r\n",
        "\x00\x01\x7f",
        "$\\frac{1}{2}$",
    )
    runs = (" ", "  ", "    ", " " * 33, "\n", "\n\n", "\n" * 40, "\t", "\t\t ", " \n ")
    alone = [*words, *runs, "", *(chr(code) for code in range(32, 127))]
    return [*alone, *(f"{word}{run}{word}" for word in words for run in runs[:6])]


def test_the_ids_of_a_real_vocabulary_are_llama_cpps(real_gguf: Path, bare_llama: BareLlama) -> None:
    tokenizer, texts = load_tokenizer(real_gguf), real_texts()
    assert len(texts) >= 300
    different = {text: ids for text in texts if (ids := tokenizer.encode(text)) != bare_llama.tokenize(text)}
    assert different == {}


def test_a_long_text_has_the_ids_of_its_parts(real_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a limit the whole model is built, which must not change the ids."""
    texts = real_texts()[:150]
    short, long = load_tokenizer(real_gguf), load_tokenizer(real_gguf)
    expected = list(map(short.encode, texts))
    monkeypatch.setattr(partial_bpe, "_LONG", -1)
    assert list(map(long.encode, texts)) == expected
