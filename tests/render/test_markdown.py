"""Streamed Markdown, read by a terminal emulator: what is displayed in the end, and at what cost."""

import io
import os
import random
import re
import sys
from collections.abc import Callable, Sequence

import pyte
import pytest

from localgemma_cli.events import Finished, Timing, Usage
from localgemma_cli.render.base import Answer
from localgemma_cli.render.markdown import MarkdownRenderer

DOCUMENTS = int(os.environ.get("LOCALGEMMA_FUZZ", "120"))  # of random Markdown
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


@pytest.mark.parametrize("start", range(0, DOCUMENTS, 30))
def test_streaming_in_any_pieces_gives_the_same_result(size: Size, start: int) -> None:
    for seed in range(start, start + 30):
        text, rng = document(seed), random.Random(seed)
        size.columns = rng.choice((20, 40, 60, 80))
        streamed = on_screen(written(chunks(text, rng)), size.columns)
        assert streamed == on_screen(written([text]), size.columns), f"seed {seed}"


def test_a_resize_while_streaming_loses_and_repeats_nothing(size: Size) -> None:
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
        ("![picture](http://a.b)", "picture (http://a.b)"),
        ("[![build](http://i.i)](http://a.b)", "build (http://i.i) (http://a.b)"),
        (r"so $$x_1 * y_2 * z$$ and $a^*$, $b^*$", r"so $$x_1 * y_2 * z$$ and $a^*$, $b^*$"),
        (r"so \(a_1 \cdot *b*\) and \[ c \\ d \]", r"so \(a_1 \cdot *b*\) and \[ c \\ d \]"),
        (
            "$$\n\\begin{matrix}\n- a & *b* \\\\\n| c |\n$$\n*d*",
            "$$\n\\begin{matrix}\n- a & *b* \\\\\n| c |\n$$\nd",
        ),
        ("\\[\n# x\n===\n\\]\nd", "\\[\n# x\n===\n\\]\nd"),
        ("$$ is *money*\n\n- one", "$$ is *money*\n\n• one"),
        ("from $5 *up* to $10", "from $5 up to $10"),
        (r"C:\\new and \*stars\*", r"C:\\new and *stars*"),
        ("Title\n===\ntext", "Title\ntext"),
        ("One\ntwo\n===", "One\ntwo\n==="),
        ("roses\\\nviolets  \nlilies\\\\", "roses\nviolets\nlilies\\\\"),
        ("2 * 3 * 4 and snake_case_name", "2 * 3 * 4 and snake_case_name"),
        ("```python\nx = 1\n", "```python\nx = 1"),
        ("~~~\n```\n~~~", "~~~\n```\n~~~"),
        ("| a | b |\n|---|--:|\n| `x` | 1 |", "a b\n─────\nx 1"),
        ("| only looks like a table", "| only looks like a table"),
        ("a\n\n\n\nb\n\n\n", "a\n\nb"),
        ("", ""),
    ],
)
def test_markdown_is_shown_as_expected(size: Size, text: str, expected: str) -> None:
    assert re.sub(r" +|─+", " ", shown(text)) == re.sub(r" +|─+", " ", expected)


def test_wrapped_rows_of_a_list_item_are_indented(size: Size) -> None:
    assert shown("- " + "word " * 20).splitlines()[1].startswith("  word")


def test_a_long_line_of_code_is_not_wrapped(size: Size) -> None:
    line = "x = '" + "a" * 150 + "'"
    assert line + "\n" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written([f"```python\n{line}\n```"]))


def test_printed_rows_are_never_redrawn(size: Size) -> None:
    """The cursor goes back to the first row of what is still being written, and never above it."""
    text = "\n\n".join(document(seed) for seed in (7, 11, *range(40)))
    data = written(chunks(text, random.Random(1)))
    assert not re.search(r"\x1b\[\d*[FH]|\x1b[78M]", data)
    assert "\x1b[K" in data
    moves = 0
    for before, up in re.findall(r"([^\r]*)\r\x1b\[(\d+)A", data):
        preview = re.fullmatch(r"\x1b\[\?7l(.*)\x1b\[\?7h", before, re.DOTALL) or re.fullmatch(
            r"\x1b\[\d+A\x1b\[\?7l(.*)\x1b\[\?7h", before, re.DOTALL
        )
        assert preview, before
        assert preview[1].count("\n") == int(up)
        moves += 1
    assert moves > 100


def test_words_do_not_move_while_a_line_is_written(size: Size) -> None:
    """Whatever has come stands on the screen whole, wrapped where it will be."""
    size.columns = 40
    text = "Long " + "words and **very strong ones, that go on** and `code that is long` " * 4
    screen, out = pyte.Screen(40, 24), TerminalStream()
    renderer = MarkdownRenderer(out, clock=ticking())
    for end, letter in enumerate(text, 1):
        at = out.tell()
        renderer.delta(letter)
        pyte.Stream(screen).feed(out.getvalue()[at:].replace("\n", "\r\n"))
        shown = re.sub(r"[*`\s]", "", "".join(screen.display))
        assert shown == re.sub(r"[*`\s]", "", text[:end])


def test_the_last_rows_of_a_streaming_table_are_visible(size: Size) -> None:
    rows = ["| name | value |", "|---|---:|", *(f"| row{n} | {n} |" for n in range(60))]
    screen, out = pyte.Screen(60, 24), TerminalStream()
    renderer = MarkdownRenderer(out, clock=ticking())
    for count, row in enumerate(rows, -1):
        at = out.tell()
        renderer.delta(f"{row}\n")
        pyte.Stream(screen).feed(out.getvalue()[at:].replace("\n", "\r\n"))
        seen = {int(n) for n in re.findall(r"row(\d+)", "\n".join(screen.display))}
        assert seen >= set(range(max(0, count - 18), count))
    renderer.finish(Answer("", FINISHED))
    whole = on_screen(out.getvalue())
    assert [int(n) for n in re.findall(r"row(\d+)", whole)] == list(range(60))
    assert whole == shown("\n".join(rows))


@pytest.mark.parametrize(("underline", "style"), [("===", "1"), ("---", "1")])
def test_a_line_under_a_text_makes_it_a_heading(size: Size, underline: str, style: str) -> None:
    data = written(chunks(f"A title\n{underline}\n\ntext", random.Random(3)))
    assert on_screen(data) == "A title\n\ntext"
    assert (
        written(["# A title\n\ntext" if underline == "===" else "## A title\n\ntext"]).split("text")[0]
        in data
    )


@pytest.mark.parametrize("terminal", ["dumb", "accessible"])
def test_without_redraw_the_cursor_never_moves_back(
    size: Size, monkeypatch: pytest.MonkeyPatch, terminal: str
) -> None:
    if terminal == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    data = written(chunks(document(5), random.Random(5)), redraw=terminal == "dumb")
    assert "\r" not in data
    assert "\x1b[K" not in data


def test_no_color_disables_colours(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    colours = re.findall(r"\x1b\[[0-9;]*m", written(["`code` **bold**\n\n```python\ndef f(): pass\n```"]))
    assert not [code for code in colours if re.search(r"\b[349]\d\b", code)]


def test_a_model_cannot_control_the_terminal(size: Size) -> None:
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
    for seed in range(2 * DOCUMENTS):
        pieces = chunks(block(random.Random(seed)), rng)
        for _ in range(5):
            pieces.insert(rng.randint(0, len(pieces)), rng.choice(evil))
        ours = re.compile(r"\x1b\[(?:[0-9;]*m|K|J|\d+A|\?7[lh])|\r(?=\x1b)")
        rest = ours.sub("", written(pieces))
        assert not re.search(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]", rest), (
            f"seed {seed}"
        )


def test_the_cost_of_a_token_does_not_grow_with_the_answer(size: Size) -> None:
    """Counted in calls, which a busy machine does not change; at 20 tokens a second on the clock."""
    text = "".join(document(seed) + "\n\n" for seed in range(5))

    def calls(times: int) -> int:
        whole = text * times
        pieces = [whole[start : start + 4] for start in range(0, len(whole), 4)]
        counted = 0

        def count(_frame: object, event: str, _arg: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        clock = ticking(0.025)
        sys.setprofile(count)
        try:
            written(pieces, clock=clock)
        finally:
            sys.setprofile(None)
        return counted

    calls(1)
    assert calls(6) <= 6.6 * calls(1)
