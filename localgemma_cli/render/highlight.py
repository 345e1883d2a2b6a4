"""Highlight code line by line as it streams."""

from collections import deque

from rich.syntax import Syntax
from rich.text import Text

from localgemma_cli.render.theme import CODE_THEME

_SEEN = 20  # previous lines that the lexer reads again: a longer string or comment loses its colour


class Highlighter:
    """Highlights one code block in `language`; code in an unknown language stays plain."""

    def __init__(self, language: str) -> None:
        self._language = language
        self._before: deque[str] = deque(maxlen=_SEEN)

    def line(self, text: str) -> Text:
        if not self._language:
            return Text(text)
        syntax = Syntax("", self._language, theme=CODE_THEME)
        coloured = syntax.highlight("\n".join([*self._before, text]))
        self._before.append(text)
        last = coloured.split("\n", allow_blank=True)[len(self._before) - 1 :]
        return last[0] if last and last[0].plain == text else Text(text)
