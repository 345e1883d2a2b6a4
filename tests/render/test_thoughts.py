"""A model's thinking before its answer: shown on a terminal, and not in a pipe."""

import io

import pytest

from localgemma_cli.events import Finished, Timing, Usage
from localgemma_cli.render.base import Answer, Renderer
from localgemma_cli.render.markdown import MarkdownRenderer
from localgemma_cli.render.plain import PlainRenderer

END = Finished("stop", Usage(None, None, None), Timing(0, None, 0))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(renderer: Renderer, stream: io.StringIO, *thoughts: str, text: str = "Hello.") -> str:
    for each in thoughts:
        renderer.thinking(each)
    renderer.delta(text)
    renderer.thinking(" more")  # the answer has begun
    renderer.finish(Answer(text, END, "".join(thoughts)))
    return stream.getvalue()


@pytest.fixture(autouse=True)
def a_terminal_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_thinking_is_dim_and_a_blank_line_separates_it_from_the_answer() -> None:
    stream = Terminal()
    shown = written(MarkdownRenderer(stream), stream, "\n\nWell", ",\n", "hm.\n\n")
    assert "\x1b[2mThinking: Well\x1b[0m" in shown
    assert "\x1b[2m,\x1b[0m" in shown
    plain = shown.replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert plain.startswith("Thinking: Well,\nhm.\n\n")
    assert plain.rstrip().endswith("Hello.")
    assert "more" not in plain


def test_plain_thinking_has_no_escapes_and_is_not_piped() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    assert written(PlainRenderer(terminal), terminal, "We\x1b]52;c;x\x07ll") == (
        "Thinking: We␛]52;c;x␇ll\n\nHello.\n"
    )
    assert written(PlainRenderer(pipe), pipe, "Well") == "Hello.\n"
    rendered = io.StringIO()
    assert "Well" not in written(MarkdownRenderer(rendered), rendered, "Well")


def test_blank_thinking_is_not_shown() -> None:
    stream = Terminal()
    assert written(PlainRenderer(stream), stream, "\n", " \n\n") == "Hello.\n"
