"""Streamed text equals whole text, and no piece holds half a character."""

from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.models import demo_tokenizer, own_tokenizer

from localgemma_cli.prompts.detokenizer import Detokenizer


def stream(ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(own_tokenizer())
    return [*(detokenizer.step(token) for token in ids), detokenizer.flush()]


def byte_ids(data: bytes) -> list[int]:
    return [demo_tokenizer().convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in data]


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("🦜 — 你好, мир e\u0301")
def test_pieces_join_to_the_text(text: str) -> None:
    ids = demo_tokenizer().encode(text, add_special_tokens=False, split_special_tokens=True)
    pieces = stream(ids)
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_several_tokens_comes_whole_once_its_run_of_bytes_has_ended() -> None:
    letter = demo_tokenizer().encode("a", add_special_tokens=False)
    assert stream([*byte_ids("🦜".encode()), *letter]) == ["", "", "", "", "🦜a", ""]
    assert stream(byte_ids("🦜".encode())) == ["", "", "", "", "🦜"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=2))))
@example(["你".encode(), b"\xff", b"a", "b", "你".encode()[:2]])
def test_bytes_that_are_no_text_are_shown_as_transformers_decodes_them(parts: list[bytes | str]) -> None:
    tokenizer = demo_tokenizer()
    ids = [
        id
        for part in parts
        for id in (
            byte_ids(part)
            if isinstance(part, bytes)
            else tokenizer.encode(part, add_special_tokens=False, split_special_tokens=True)
        )
    ]
    assert "".join(stream(ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12))
@example("你a".encode() + b"\xe4")
def test_an_answer_that_may_go_on_has_all_but_an_unfinished_character(data: bytes) -> None:
    """Up to the last token at which nothing was open, as its ids are kept."""
    detokenizer = Detokenizer(own_tokenizer())
    whole = 0
    for count, token in enumerate(byte_ids(data), 1):
        assert detokenizer.step(token) == ""
        whole = whole if detokenizer.is_open else count
    kept = byte_ids(data)[:whole]
    assert detokenizer.complete_text() == demo_tokenizer().decode(kept)
    assert len(data) - whole < 4


def test_special_tokens_are_not_shown() -> None:
    tokenizer = demo_tokenizer()
    assert "".join(stream([tokenizer.bos_token_id, tokenizer.eos_token_id])) == ""
