"""Write answers as the model wrote them, for pipes and files: no ANSI, no wrapping, one final newline."""

from typing import TextIO

from localgemma_cli.render.base import Answer
from localgemma_cli.render.thoughts import Thoughts
from localgemma_cli.sanitize import visible


class PlainRenderer:
    """Writes one answer.

    `sanitize` makes control characters visible; thinking is only shown on a terminal.
    """

    def __init__(self, stdout: TextIO, *, sanitize: bool = False) -> None:
        self._stdout, self._sanitize = stdout, sanitize
        self._newlines = ""  # written only when more text follows
        self._written = False
        self._thoughts = Thoughts(self._show)

    def thinking(self, text: str) -> None:
        if self._stdout.isatty():
            self._thoughts.add(text)

    def delta(self, text: str) -> None:
        if text:
            self._thoughts.end()
        text = visible(text) if self._sanitize else text
        body = text.rstrip("\n")
        if body:
            self._stdout.write(self._newlines + body)
            self._stdout.flush()
            self._newlines, self._written = "", True
        self._newlines += text[len(body) :]

    def finish(self, answer: Answer) -> None:
        self._thoughts.end()
        self._end()

    def abort(self) -> None:
        self._thoughts.end()
        if self._written:
            self._end()

    def _show(self, text: str) -> None:
        self._stdout.write(text)
        self._stdout.flush()

    def _end(self) -> None:
        self._stdout.write("\n")
        self._stdout.flush()
