"""A secret is not shown, however whoever knows it writes it."""

import base64
import html
import itertools
from urllib.parse import quote

import pytest

from localgemma_cli.redaction import MASK, WITHHELD, redact

KEY = "sk-Secret/key+123=="


def test_only_the_key_is_left_out_of_a_text() -> None:
    assert redact(f"no such key: {KEY}, sorry", KEY) == f"no such key: {MASK}, sorry"
    assert redact("You pass sk-S****3==, a bad secret", KEY) == "You pass sk-S****3==, a bad secret"
    assert redact("anything", None) == "anything"
    assert redact("the EMPTY room", "EMPTY") == f"the {MASK} room"


WAYS = {
    "upper": KEY.upper(),
    "url": quote(KEY, safe=""),
    "url twice": quote(quote(KEY, safe=""), safe=""),
    "all of it escaped": "".join(f"%{byte:02X}" for byte in KEY.encode()),
    "page": "".join(f"&#{ord(c)};" for c in KEY),
    "page, hexadecimal": html.escape("".join(f"&#x{ord(c):x};" for c in KEY)).replace("&amp;", "&"),
    "string": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 of a header": base64.b64encode(b"Authorization: Bearer " + KEY.encode()).decode(),
    "base64 of a user": base64.urlsafe_b64encode(b"me:" + KEY.encode() + b"\n").decode(),
    "hexadecimal": KEY.encode().hex(),
    "spaces": " ".join(KEY),
    "lines": "\n".join(KEY),
    "two fields": f"{KEY[:9]} · {KEY[9:]}",
    "half": KEY[: len(KEY) * 2 // 3],
    "backwards": KEY[::-1],
    "wide": "".join(chr(ord(c) + 0xFEE0) for c in KEY),
}


@pytest.mark.parametrize("written", WAYS.values(), ids=WAYS.keys())
def test_a_text_that_holds_it_in_another_way_is_withheld(written: str) -> None:
    assert redact(f"The key {written} is wrong.", KEY) == WITHHELD


def test_base64_beside_anything_is_found() -> None:
    for before, after in itertools.product(range(6), range(4)):
        text = base64.b64encode(b"x" * before + KEY.encode() + b"y" * after).decode()
        assert redact(text, KEY) == WITHHELD


def test_a_key_as_numbers_of_its_characters() -> None:
    key = "sk-the-key-of-this-test-4711"
    for text in (
        str([ord(character) for character in key]),
        " ".join(str(ord(character)) for character in key),
        "".join(f"\\{ord(character):03o}" for character in key),
    ):
        assert redact(f"bad key {text}!", key) == WITHHELD
    assert redact("it has 12 of 345, 67 and 89 tokens", key) == "it has 12 of 345, 67 and 89 tokens"
