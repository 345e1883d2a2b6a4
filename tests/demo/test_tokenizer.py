"""The demo's tokenizer is Gemma's in small."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from localgemma_cli.demo.reading import read_corpus, select
from localgemma_cli.demo.tokenizer import SPECIAL, VOCABULARY
from localgemma_cli.models.catalog import demo_folder

TOKENIZER = Tokenizer.from_file(str(demo_folder() / "tokenizer.json"))

# U+2581 stands for a space inside the tokenizer, as in Gemma's own; surrogates are not text.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="▁"))


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


@settings(deadline=None)  # a busy machine is no failure
@given(TEXT)
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(ids(text), skip_special_tokens=False) == text


def test_the_control_tokens_have_gemmas_ids() -> None:
    assert {index: TOKENIZER.id_to_token(index) for index in SPECIAL} == SPECIAL
    assert ids("\n") == [108]
    assert ids("\n\n") == [109]
    assert TOKENIZER.get_vocab_size() == VOCABULARY


def test_bos_is_put_in_front() -> None:
    assert TOKENIZER.encode("hello").ids[0] == 2


def test_digits_are_single_tokens() -> None:
    assert len(ids("8192")) == 4


@pytest.mark.parametrize("byte", [0, 0x41, 0xFF])
def test_the_bytes_are_in_the_vocabulary(byte: int) -> None:
    assert TOKENIZER.token_to_id(f"<0x{byte:02X}>") is not None


def test_a_name_is_the_same_tokens_wherever_it_stands() -> None:
    name = ids("x Zoltan")[-len(ids(" Zoltan")) :]
    for mark in (".", "!", ",", "?", "\n", " and"):
        asked = ids(f"x Zoltan{mark}")
        assert asked[1 : 1 + len(name)] == name


def test_a_tokenizer_is_rebuilt_the_same(tmp_path: Path) -> None:
    from localgemma_cli.demo.train import train_tokenizer

    train_tokenizer(select(read_corpus(), "train"), 0, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (demo_folder() / name).read_bytes()


def test_the_first_batches_are_the_same_for_a_seed(tmp_path: Path) -> None:
    from localgemma_cli.demo.train import PHASES, Recipe, batches, train_tokenizer

    corpus = select(read_corpus(), "train")
    tokenizer = train_tokenizer(corpus, 0, tmp_path)
    first, second = (batches(corpus, tokenizer, Recipe(), PHASES[-1]) for _ in range(2))
    for _ in range(3):
        for one, other in zip(next(first), next(second), strict=True):
            assert one.equal(other)


def test_a_rows_tokens_are_the_templates(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from localgemma_cli.demo.dialogues import Turn
    from localgemma_cli.demo.train import row

    turns = [Turn("Hello  there\n\nyou", "- a\n- b"), Turn("12 é", "Bye.")]
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in (("user", turn.user), ("assistant", turn.model))
    ]
    rendered = AutoTokenizer.from_pretrained(demo_folder()).apply_chat_template(messages)["input_ids"]
    assert list(row(TOKENIZER, turns, 1024).ids) == rendered
