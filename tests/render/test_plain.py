"""The plain renderer: the text unchanged, and exactly one newline at its end."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localgemma_cli.events import Finished, Timing, Usage
from localgemma_cli.render.base import Answer
from localgemma_cli.render.plain import PlainRenderer

FINISHED = Finished("stop", Usage(1, 0, 1), Timing(0.0, 0.0, 0.0))


def rendered(pieces: list[str]) -> str:
    out = io.StringIO()
    renderer = PlainRenderer(out)
    for piece in pieces:
        renderer.delta(piece)
    renderer.finish(Answer("".join(pieces), FINISHED))
    return out.getvalue()


@given(st.lists(st.text(alphabet="ab \n\t\x1b", max_size=5)))
def test_the_text_then_one_newline(pieces: list[str]) -> None:
    assert rendered(pieces) == "".join(pieces).rstrip("\n") + "\n"


@pytest.mark.parametrize(("pieces", "out"), [([], ""), (["half an "], "half an \n")])
def test_an_error_leaves_the_stream_at_a_line_start(pieces: list[str], out: str) -> None:
    stream = io.StringIO()
    renderer = PlainRenderer(stream)
    for piece in pieces:
        renderer.delta(piece)
    renderer.abort()
    assert stream.getvalue() == out


def test_text_is_written_as_it_streams() -> None:
    stream = io.StringIO()
    PlainRenderer(stream).delta("now")
    assert stream.getvalue() == "now"
