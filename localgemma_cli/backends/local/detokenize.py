"""Ids to text, a token at a time, never half a character."""

import codecs
import re

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Detokenizer:
    """Streams the text of one answer; special tokens are left out.

    Byte-fallback tokens go through an incremental UTF-8 decoder of our own: the tokenizers library's
    DecodeStream raises where a model writes bytes that are no character, and its `decode` then spoils
    the whole characters before them as well.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def step(self, token: int) -> str:
        """The characters that `token` completes; empty while a character is still open."""
        byte = _BYTE.fullmatch(self._tokenizer.id_to_token(token) or "")
        if byte:
            return self._utf8.decode(bytes.fromhex(byte[1]))
        return self.flush() + str(self._tokenizer.decode([token], skip_special_tokens=True))

    @property
    def is_open(self) -> bool:
        """Whether a character has begun and is not whole."""
        return bool(self._utf8.getstate()[0])

    def flush(self) -> str:
        """What is left of a character that will not be finished: U+FFFD, or nothing."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
