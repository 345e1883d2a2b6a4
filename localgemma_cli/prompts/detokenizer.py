"""Ids to text, a token at a time, never half a character."""

import re

from localgemma_cli.prompts.tokenizer import Tokenizer

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
        byte = _BYTE.fullmatch(self._tokenizer.token_of(token) or "")
        if byte:
            self._bytes += bytes.fromhex(byte[1])
            return ""
        return self.flush() + self._tokenizer.decode([token])

    @property
    def is_open(self) -> bool:
        """Whether a character has begun that the next byte may make whole."""
        return self._whole() < len(self._bytes)

    def settled(self) -> str:
        """What an open run is without the character that is not whole: for an answer that may go on."""
        return _text(bytes(self._bytes[: self._whole()]))

    def flush(self) -> str:
        """What is left of a run that will not go on."""
        run = bytes(self._bytes)
        self._bytes.clear()
        return _text(run)

    def _whole(self) -> int:
        """How many of the bytes are no beginning of a character; a run that is spoiled has none."""
        try:
            self._bytes.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return error.start
        return len(self._bytes)


def _text(run: bytes) -> str:
    """U+FFFD for each byte of a run that is no text."""
    try:
        return run.decode("utf-8")
    except UnicodeDecodeError:
        return "\ufffd" * len(run)
