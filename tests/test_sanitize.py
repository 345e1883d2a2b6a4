"""Nothing a model writes can drive the terminal."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localgemma_cli.sanitize import one_line, visible

BIDI = {
    "\u202a",
    "\u202b",
    "\u202c",
    "\u202d",
    "\u202e",
    "\u2066",
    "\u2067",
    "\u2068",
    "\u2069",
    "\u200e",
    "\u200f",
}


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet=st.characters(max_codepoint=0x2070)))
def test_no_control_character_survives(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) == "Cc" and c not in "\t\n"]
    assert not BIDI & set(shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "␛[31mred"),
        ("\x1b]52;c;aGk=\x07", "␛]52;c;aGk=␇"),
        ("a\rb", "a␍b"),
        ("\x9b2J", "<9B>2J"),
        ("a\u202eb", "a<U+202E>b"),
        ("tab\tand\nline stay, so do é 你 🦜", "tab\tand\nline stay, so do é 你 🦜"),
    ],
)
def test_what_is_hidden_becomes_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_messages_that_quote_others_stay_on_one_line() -> None:
    assert one_line("a\n  b\x1b[0m\tc") == "a b␛[0m c"
