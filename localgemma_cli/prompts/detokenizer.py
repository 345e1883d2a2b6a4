"""Token ids to text, one token at a time, never half a character."""

from localgemma_cli.prompts.tokenizer import BYTE_TOKEN, Tokenizer


class Detokenizer:
    """Streams the text of one answer, without special tokens.

    A run of byte-fallback tokens is held back until it ends: one invalid byte makes every byte of the run
    U+FFFD, as in the tokenizers library's `decode`. The library's own DecodeStream raises an error instead.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = bytearray()  # of the current run of byte tokens

    def step(self, token: int) -> str:
        """The text that `token` completes; empty inside a run of byte tokens."""
        byte = BYTE_TOKEN.fullmatch(self._tokenizer.token_of(token) or "")
        if byte:
            self._bytes += bytes.fromhex(byte[1])
            return ""
        return self.flush() + self._tokenizer.decode([token])

    @property
    def is_open(self) -> bool:
        """Whether the last character is incomplete and the next byte may complete it."""
        return self._complete_length() < len(self._bytes)

    def complete_text(self) -> str:
        """The text of the current run without an incomplete last character, for a resumable answer."""
        return _decode(bytes(self._bytes[: self._complete_length()]))

    def flush(self) -> str:
        """The text of the current run, which ends here."""
        run = bytes(self._bytes)
        self._bytes.clear()
        return _decode(run)

    def _complete_length(self) -> int:
        """The number of bytes before an incomplete last character; all of them in an invalid run."""
        try:
            self._bytes.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return error.start
        return len(self._bytes)


def _decode(run: bytes) -> str:
    """The text of a run; U+FFFD for each of its bytes if it is not UTF-8."""
    try:
        return run.decode("utf-8")
    except UnicodeDecodeError:
        return "\ufffd" * len(run)
