"""The answer as the model wrote it, for pipes and files: no ANSI, no wrapping, one newline at the end."""

from typing import TextIO

from localgemma_cli.render.base import Answer


class PlainRenderer:
    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout
        self._newlines = ""  # held back: they are only written once more text follows
        self._written = False

    def delta(self, text: str) -> None:
        body = text.rstrip("\n")
        if body:
            self._stdout.write(self._newlines + body)
            self._stdout.flush()
            self._newlines, self._written = "", True
        self._newlines += text[len(body) :]

    def finish(self, answer: Answer) -> None:
        self._end()

    def abort(self) -> None:
        if self._written:
            self._end()

    def _end(self) -> None:
        self._stdout.write("\n")
        self._stdout.flush()
