"""Ids to text, a token at a time, never half a character."""

import re

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Detokenizer:
    """Streams the text of one answer; special tokens are left out.

    A run of byte-fallback tokens is held back until it ends, because only then is it known to be text: one
    byte that is none spoils the whole run, as it does in the tokenizers library's `decode`. Its DecodeStream
    raises there.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = bytearray()  # of the run that is open

    def step(self, token: int) -> str:
        """The characters that `token` completes; empty while a run of bytes is open."""
        byte = _BYTE.fullmatch(self._tokenizer.id_to_token(token) or "")
        if byte:
            self._bytes += bytes.fromhex(byte[1])
            return ""
        return self.flush() + str(self._tokenizer.decode([token], skip_special_tokens=True))

    @property
    def is_open(self) -> bool:
        """Whether a run of bytes has begun that may go on."""
        return bool(self._bytes)

    def flush(self) -> str:
        """What is left of a run that will not go on: its text, or U+FFFD for each of its bytes."""
        run = bytes(self._bytes)
        self._bytes.clear()
        try:
            return run.decode("utf-8")
        except UnicodeDecodeError:
            return "\ufffd" * len(run)
