"""Streamed Markdown against a terminal emulator: what stands there is what rendering at once gives."""

import io

import pyte
import pytest
from rich.console import Console
from rich.markdown import Markdown

from localgemma_cli.events import Finished, Timing, Usage
from localgemma_cli.render.base import Answer
from localgemma_cli.render.markdown import MarkdownRenderer, split_finished

FINISHED = Finished("stop", Usage(1, 0, 1), Timing(0.0, 0.0, 0.0))
DOCUMENT = """# Presets

There are **four** of them, and `auto`:

1. exact
2. speed

- memory
- memory_extreme

```python
def f(x):

    return x
```

> A quote, and a long line that is wider than the terminal is, so that it has to be wrapped somewhere.

| preset | bits |
|---|---|
| memory | 4 |

The end with 你好 and 🦜."""


class TerminalStream(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(pieces: list[str], monkeypatch: pytest.MonkeyPatch, interval: float = 0.0) -> str:
    monkeypatch.setattr("localgemma_cli.render.markdown._REDRAW_SECONDS", interval)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "100")
    out = TerminalStream()
    renderer = MarkdownRenderer(out)
    for piece in pieces:
        renderer.delta(piece)
    renderer.finish(Answer("".join(pieces), FINISHED))
    return on_screen(out.getvalue())


def on_screen(data: str) -> str:
    screen = pyte.Screen(60, 100)
    pyte.Stream(screen).feed(data.replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in screen.display).strip()


def at_once(text: str) -> str:
    out = io.StringIO()
    Console(file=out, width=60, force_terminal=True, highlight=False).print(Markdown(text, hyperlinks=False))
    return on_screen(out.getvalue())


def without_blank_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_streamed_markdown_ends_as_if_rendered_at_once(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    pieces = [DOCUMENT[start : start + size] for start in range(0, len(DOCUMENT), size)]
    assert without_blank_lines(shown(pieces, monkeypatch)) == without_blank_lines(at_once(DOCUMENT))


def test_a_fence_that_never_closes_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "x = 1" in shown(["Look:\n\n```python\n", "x = 1\n"], monkeypatch)


def test_rich_markup_is_only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "[red]not red[/red]" in shown(["[red]not red[/red]"], monkeypatch)


def test_control_sequences_are_shown_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(["before \x1b[2J\x1b[H after\x07"], monkeypatch)
    assert "before ␛[2J␛[H after␇" in text


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("one\n\ntwo\n", "one\n\n"),
        ("one\n\n", ""),
        ("one\n\ntw", ""),
        ("```\na\n\nb\n", ""),
        ("```\na\n```\n\nnext\n", "```\na\n```\n\n"),
        ("1. a\n\n2. b\n", ""),
        ("- a\n\n  more of a\n", ""),
    ],
)
def test_a_block_is_finished_once_nothing_can_change_it(text: str, finished: str) -> None:
    assert split_finished(text) == (finished, text[len(finished) :])
