"""What a model thinks before it answers, as it comes: set apart from the answer by a blank line."""

from collections.abc import Callable

from localgemma_cli.sanitize import visible


class Thoughts:
    """`write` puts a piece on the terminal; what is thought once the answer has begun is not shown."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._shown = self._ended = False
        self._held = ""  # blanks at the end: written once more follows

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
        """The answer begins, or nothing more comes."""
        if self._shown and not self._ended:
            self._write("\n\n")
        self._ended = True
