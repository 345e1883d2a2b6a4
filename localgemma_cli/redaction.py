"""A secret kept out of what is shown, also where whoever knows it writes it in another way."""

import html
import re
from base64 import b64encode
from unicodedata import normalize
from urllib.parse import unquote

WITHHELD = "[not shown: it repeats the secret key]"
MASK = "***"
SHORTEST_SECRET = 8  # characters; a shorter one (EMPTY, none) is a word like others, left out as it is
_ESCAPED = re.compile(r"\\(?:u|x|u\{)0*([0-9a-fA-F]{2})\}?")

_OCTAL = re.compile(r"\\([0-7]{3})")
_CODES = re.compile(r"\b(\d{2,3})\b[\s,;]*")  # of characters


def redacted(text: str, secret: str | None) -> str:
    """`text` without `secret`; WITHHELD where half of it is there, in another case, cut up or encoded."""
    if not secret:
        return text
    text = text.replace(secret, MASK)
    return WITHHELD if _holds(text, secret) else text


def _holds(text: str, secret: str) -> bool:
    wanted = _bare(secret)
    if len(wanted) < SHORTEST_SECRET:
        return False
    size = max(SHORTEST_SECRET, -(-len(wanted) // 2))
    parts = [wanted[at : at + size] for at in range(len(wanted) - size + 1)]
    encoded = (secret.encode().hex(), *map(str.casefold, _base64(secret.encode())))
    for reading in _readings(text):
        bare = _bare(reading)
        if any(each in bare for each in (*parts, *map(_bare, encoded))):
            return True
    return False


def _readings(text: str) -> list[str]:
    """The text, and what is in it where it is escaped for a URL (once or twice), a page or a string."""
    once = unquote(text)
    plain = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), html.unescape(once))
    octal = _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
    codes = _CODES.sub(lambda match: chr(int(match[1])), text)
    return list(dict.fromkeys((text, once, unquote(once), plain, octal, codes, text[::-1])))


def _bare(text: str) -> str:
    """Letters and digits only, in one case and one form."""
    return re.sub(r"[\W_]+", "", normalize("NFKC", text).casefold())


def _base64(secret: bytes) -> list[str]:
    """What of its base64 does not depend on its neighbours, wherever among them it begins."""
    whole = (b64encode(bytes(before) + secret).decode().rstrip("=") for before in range(3))
    return [text[first:-1] for text, first in zip(whole, (0, 2, 3), strict=True)]
