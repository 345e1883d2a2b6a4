"""The tokenizer in a GGUF file has the ids that transformers reads from the same file."""

import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from transformers import AutoTokenizer

from localgemma_cli.errors import NotFoundError
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
    "the  the   the    the \u2581\u2581the",
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
    assert ours.added_tokens == {name: special for name, special in added.items() if name != "<mask>"}
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
