"""Streamed Markdown, its bytes read by a terminal emulator: what stands there in the end, at what cost."""

import io
import os
import random
import re
import time
from collections.abc import Callable, Sequence

import pyte
import pytest

from localgemma_cli.events import Finished, Timing, Usage
from localgemma_cli.render.base import Answer
from localgemma_cli.render.markdown import MarkdownRenderer

FINISHED = Finished("stop", Usage(1, 0, 1), Timing(0.0, 0.0, 0.0))
WORDS = ["the", "cache", "of", "a", "model", "holds", "keys", "你好", "values", "🦜", "été", "naïve", "שלום"]
WORDS += ["x_y_z", "every-token", "3.14", "don't"]


class TerminalStream(io.StringIO):
    def isatty(self) -> bool:
        return True


class Size:
    """The terminal's width, which a test changes as a user drags the window."""

    def __init__(self, columns: int) -> None:
        self.columns = columns

    def __call__(self, *_: object) -> os.terminal_size:
        return os.terminal_size((self.columns, 24))


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> Size:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    here = Size(60)
    monkeypatch.setattr("os.get_terminal_size", here)
    return here


def ticking(step: float = 1.0) -> Callable[[], float]:
    """A clock on which every look is later, so that every delta is drawn."""
    now = [0.0]

    def clock() -> float:
        now[0] += step
        return now[0]

    return clock


def written(pieces: Sequence[str], *, redraw: bool = True, clock: Callable[[], float] | None = None) -> str:
    out = TerminalStream()
    renderer = MarkdownRenderer(out, redraw=redraw, clock=clock or ticking())
    for piece in pieces:
        renderer.delta(piece)
    renderer.finish(Answer("".join(pieces), FINISHED))
    return out.getvalue()


def on_screen(data: str, columns: int = 60) -> str:
    screen = pyte.Screen(columns, 24 + data.count("\n") + len(data) // columns)
    pyte.Stream(screen).feed(data.replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in screen.display).strip("\n")


def shown(text: str) -> str:
    return on_screen(written([text]))


def chunks(text: str, rng: random.Random) -> list[str]:
    pieces, start = [], 0
    while start < len(text):
        end = start + rng.choice((1, 1, 2, 3, 5, 8, 40))
        pieces.append(text[start:end])
        start = end
    return pieces


def prose(rng: random.Random, most: int = 30) -> str:
    words = rng.choices(WORDS, k=rng.randint(1, most))
    for _ in range(rng.randint(0, 3)):
        first = rng.randrange(len(words))
        last = min(len(words), first + rng.randint(1, 6))
        mark = rng.choice(("**", "*", "`", "~~", "***", "["))
        close = "](http://example.com/a_b)" if mark == "[" else mark
        words[first:last] = [mark + " ".join(words[first:last]).strip("*`~[]") + close]
    if rng.random() < 0.2:
        words.insert(
            rng.randrange(len(words)), rng.choice(("**", "`never closed", "2 * 3", "a_b", "<div>", "&lt;"))
        )
    return " ".join(words)


def block(rng: random.Random) -> str:
    kind = rng.randrange(9)
    if kind == 0:
        return "#" * rng.randint(1, 4) + " " + prose(rng, 6)
    if kind == 1:
        lines = [
            "def f(x):",
            '    """One',
            '    two"""',
            "",
            "    return x  # done",
            "x = 'a' * 200",
            "\tif a < b:",
        ]
        return "\n".join(["```" + rng.choice(("python", "", "nosuchlanguage")), *rng.sample(lines, 4), "```"])
    if kind in (2, 3):
        marks = ["-", "*", "1.", "  -", "10.", "   1)"]
        return "\n".join(f"{rng.choice(marks)} {prose(rng, 20)}" for _ in range(rng.randint(1, 5)))
    if kind == 4:
        rows = [f"| {prose(rng, 3)} | {prose(rng, 2)} |" for _ in range(rng.randint(0, 3))]
        return "\n".join(["| one | two |", "|---|---:|", *rows])
    if kind == 5:
        return "\n".join(f"> {prose(rng)}" for _ in range(rng.randint(1, 3)))
    if kind == 6:
        return "---"
    return "\n".join(prose(rng, 60) for _ in range(rng.randint(1, 3)))


def document(seed: int) -> str:
    rng = random.Random(seed)
    text = ("\n" * rng.randint(1, 2)).join(block(rng) for _ in range(rng.randint(1, 8)))
    return text + ("\n```python\nnever = 'closed" if rng.random() < 0.1 else "")


@pytest.mark.parametrize("start", range(0, 240, 60))
def test_streamed_in_any_pieces_it_ends_as_if_rendered_at_once(size: Size, start: int) -> None:
    for seed in range(start, start + 60):
        text, rng = document(seed), random.Random(seed)
        size.columns = rng.choice((20, 40, 60, 80))
        streamed = on_screen(written(chunks(text, rng)), size.columns)
        assert streamed == on_screen(written([text]), size.columns), f"seed {seed}"


def test_a_resize_in_the_middle_loses_and_doubles_nothing(size: Size) -> None:
    """The emulator keeps long rows, as terminals do that reflow; only where rows break may differ."""
    for seed in range(200, 260):
        text, rng = document(seed), random.Random(seed)
        if "|" in text:
            continue  # columns of a table depend on the width
        size.columns, out = 60, TerminalStream()
        renderer = MarkdownRenderer(out, clock=ticking())
        for piece in chunks(text, rng):
            if rng.random() < 0.1:
                size.columns = rng.randint(40, 100)
            renderer.delta(piece)
        renderer.finish(Answer(text, FINISHED))
        size.columns = 60
        assert words(on_screen(out.getvalue(), 300)) == words(on_screen(written([text]), 300)), f"seed {seed}"


def words(text: str) -> str:
    """Without what wrapping decides: blanks, and the bars and rules that it repeats."""
    return re.sub(r"[\s│─]+", "", text)


def test_every_word_of_the_answer_is_shown_in_order(size: Size) -> None:
    for seed in range(300, 340):
        text = document(seed)
        if "|" not in text:
            ignored = r"[\s*`~\[\]#>|()•│─-]|http://example.com/a_b|&lt;|<"
            screen = re.sub(r"\s", "", on_screen(written([text])))
            assert re.sub(ignored, "", screen) == re.sub(ignored, "", re.sub(r"\s", "", text)), f"seed {seed}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Title\n\ntext", "Title\n\ntext"),
        ("a **bold** and `code`", "a bold and code"),
        ("- one\n- two\n  - three", "• one\n• two\n  • three"),
        ("9. nine\n10. ten", "9. nine\n10. ten"),
        ("> said\n> twice", "│ said\n│ twice"),
        ("roses are red\nviolets are blue", "roses are red\nviolets are blue"),
        ("[here](http://a.b)", "here (http://a.b)"),
        ("http://a.b/c_d_e", "http://a.b/c_d_e"),
        ("<div>html</div>", "<div>html</div>"),
        ("[red]not red[/red]", "[red]not red[/red]"),
        ("![picture](http://a.b)", "!picture (http://a.b)"),
        ("2 * 3 * 4 and snake_case_name", "2 * 3 * 4 and snake_case_name"),
        ("```python\nx = 1\n", "```python\nx = 1"),
        ("~~~\n```\n~~~", "~~~\n```\n~~~"),
        ("| a | b |\n|---|--:|\n| `x` | 1 |", "a b\n─────\nx 1"),
        ("| only looks like a table", "| only looks like a table"),
        ("a\n\n\n\nb\n\n\n", "a\n\nb"),
        ("", ""),
    ],
)
def test_what_is_shown(size: Size, text: str, expected: str) -> None:
    assert re.sub(r" +|─+", " ", shown(text)) == re.sub(r" +|─+", " ", expected)


def test_wrapped_rows_of_a_list_item_hang_under_its_words(size: Size) -> None:
    assert shown("- " + "word " * 20).splitlines()[1].startswith("  word")


def test_a_long_line_of_code_is_not_broken(size: Size) -> None:
    line = "x = '" + "a" * 150 + "'"
    assert line + "\n" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written([f"```python\n{line}\n```"]))


def test_rows_that_are_printed_are_not_touched_again(size: Size) -> None:
    """The cursor goes back to the start of its own row, and never up."""
    data = written(chunks(document(7) + "\n\n" + document(11), random.Random(1)))
    assert not re.search(r"\x1b\[\d*[AFHJ]|\x1b[78M]", data)
    assert "\x1b[K" in data


@pytest.mark.parametrize("terminal", ["dumb", "accessible"])
def test_without_redraw_the_cursor_never_goes_back(
    size: Size, monkeypatch: pytest.MonkeyPatch, terminal: str
) -> None:
    if terminal == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    data = written(chunks(document(5), random.Random(5)), redraw=terminal == "dumb")
    assert "\r" not in data
    assert "\x1b[K" not in data


def test_no_color_keeps_colours_out(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    colours = re.findall(r"\x1b\[[0-9;]*m", written(["`code` **bold**\n\n```python\ndef f(): pass\n```"]))
    assert not [code for code in colours if re.search(r"\b[349]\d\b", code)]


def test_a_model_cannot_drive_the_terminal(size: Size) -> None:
    """No C0 but newline and tab, no DEL, no C1, no bidi override but those of our own drawing."""
    rng = random.Random(0)
    evil = [
        chr(code)
        for code in (*range(0x20), 0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    ]
    evil += [
        "\x1b[2J",
        "\x1b]0;title\x07",
        "\x1b]52;c;aGk=\x07",
        "&#x202e;",
        "&#27;[2J",
        "\x9b31m",
        "\r\x1b[A",
    ]
    for seed in range(1000):
        pieces = chunks(block(random.Random(seed)), rng)
        for _ in range(5):
            pieces.insert(rng.randint(0, len(pieces)), rng.choice(evil))
        ours = re.compile(r"\x1b\[(?:[0-9;]*m|K|\?7[lh])|\r(?=\x1b)")
        rest = ours.sub("", written(pieces))
        assert not re.search(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]", rest), (
            f"seed {seed}"
        )


def answer_of(tokens: int) -> list[str]:
    rng = random.Random(tokens)
    text = ""
    while len(text) < 4 * tokens:
        text += block(rng) + "\n\n"
    return [text[start : start + 4] for start in range(0, 4 * tokens, 4)]


def test_the_cost_of_a_token_does_not_grow_with_the_answer(size: Size) -> None:
    """At 20 tokens a second on the clock, so two of them to a redraw: CPU seconds, the best of three."""

    def seconds(tokens: int) -> float:
        return min(timed(answer_of(tokens)) for _ in range(3))

    def timed(pieces: list[str]) -> float:
        started = time.process_time()
        written(pieces, clock=ticking(0.025))
        return time.process_time() - started

    seconds(500)
    costs = {tokens: seconds(tokens) for tokens in (500, 1000, 2000, 4000)}
    assert costs[4000] <= 10 * costs[500], costs
    assert costs[4000] / 4000 < 0.002, costs
