"""Show a model's thinking as it streams, before the answer and a blank line."""

from collections.abc import Callable

from localgemma_cli.sanitize import visible


class Thoughts:
    """Shows the thinking of one answer with `write`; none after the answer has begun."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._shown = self._ended = False
        self._held = ""  # white space at the end, written when more follows

    def add(self, text: str) -> None:
        text = visible(text) if self._shown else visible(text).lstrip()
        if self._ended or not text:
            return
        body = text.rstrip()
        if not body:
            self._held += text
            return
        self._write(self._held + body if self._shown else f"Thinking: {body}")
        self._shown, self._held = True, text[len(body) :]

    def end(self) -> None:
        """End the thinking: the answer begins, or the stream has ended."""
        if self._shown and not self._ended:
            self._write("\n\n")
        self._ended = True
