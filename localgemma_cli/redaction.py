"""Keep a secret out of displayed text, even if another program repeats it in an encoded form."""

import html
import re
from base64 import b64encode
from unicodedata import normalize
from urllib.parse import unquote

WITHHELD = "[not shown: it repeats the secret key]"
MASK = "***"
SHORTEST_SECRET = 8  # characters; a shorter key (EMPTY, none) is only replaced where it occurs literally
_ESCAPED = re.compile(r"\\(?:u|x|u\{)0*([0-9a-fA-F]{2})\}?")

_OCTAL = re.compile(r"\\([0-7]{3})")
_CODES = re.compile(r"\b(\d{2,3})\b[\s,;]*")  # code points, as decimal numbers


def redact(text: str, secret: str | None) -> str:
    """Mask `secret` in `text`; return WITHHELD if half of it remains in another case, split up or encoded."""
    if not secret:
        return text
    text = text.replace(secret, MASK)
    return WITHHELD if _contains(text, secret) else text


def _contains(text: str, secret: str) -> bool:
    plain = _letters_and_digits(secret)
    if len(plain) < SHORTEST_SECRET:
        return False
    size = max(SHORTEST_SECRET, -(-len(plain) // 2))
    parts = [plain[at : at + size] for at in range(len(plain) - size + 1)]
    encoded = (secret.encode().hex(), *map(str.casefold, _base64(secret.encode())))
    for reading in _readings(text):
        bare = _letters_and_digits(reading)
        if any(each in bare for each in (*parts, *map(_letters_and_digits, encoded))):
            return True
    return False


def _readings(text: str) -> list[str]:
    """The text, and the text decoded from URL (once or twice), HTML and string escapes, and reversed."""
    once = unquote(text)
    plain = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), html.unescape(once))
    octal = _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
    codes = _CODES.sub(lambda match: chr(int(match[1])), text)
    return list(dict.fromkeys((text, once, unquote(once), plain, octal, codes, text[::-1])))


def _letters_and_digits(text: str) -> str:
    """The letters and digits, case-folded and NFKC-normalized."""
    return re.sub(r"[\W_]+", "", normalize("NFKC", text).casefold())


def _base64(secret: bytes) -> list[str]:
    """The part of its base64 that is independent of the bytes around it, for each of three alignments."""
    whole = (b64encode(bytes(before) + secret).decode().rstrip("=") for before in range(3))
    return [text[first:-1] for text, first in zip(whole, (0, 2, 3), strict=True)]
