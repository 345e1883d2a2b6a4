"""Streamed text equals whole text, and no piece holds half a character."""

from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.models import demo_tokenizer

from localgemma_cli.backends.local.detokenize import Detokenizer


def stream(ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(demo_tokenizer().backend_tokenizer)
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


def test_a_character_of_several_tokens_comes_whole_with_its_last() -> None:
    assert stream(byte_ids("🦜".encode())) == ["", "", "", "🦜", ""]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=24))
def test_bytes_that_are_no_text_spoil_nothing_else(data: bytes) -> None:
    pieces = stream([*byte_ids("你".encode()), *byte_ids(data), *byte_ids(b"a")])
    assert "".join(pieces) == "你" + (data + b"a").decode("utf-8", errors="replace")


def test_an_unfinished_character_is_shown_when_text_goes_on_or_ends() -> None:
    letter = demo_tokenizer().encode("a", add_special_tokens=False)
    assert stream([*byte_ids("你".encode()[:2]), *letter]) == ["", "", "\ufffda", ""]
    assert stream(byte_ids("你".encode()[:2])) == ["", "", "\ufffd"]


def test_special_tokens_are_not_shown() -> None:
    tokenizer = demo_tokenizer()
    assert "".join(stream([tokenizer.bos_token_id, tokenizer.eos_token_id])) == ""
