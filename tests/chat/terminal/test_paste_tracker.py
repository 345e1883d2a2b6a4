"""Pasted text is text: in the real program, what a server gets; and what is followed at the prompt."""

import asyncio
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from support.chat_server import ChatServer, error, sse
from support.program import COMMAND, Program
from support.terminal import Terminal, paste

from localgemma_cli.chat.attachments import find_mentions
from localgemma_cli.chat.prompt_text import PromptText, Spans, as_pasted
from localgemma_cli.chat.slash.slash_commands import Command, Question, UnknownCommand, opens_block, parse
from localgemma_cli.chat.terminal.completion import ChatCompleter
from localgemma_cli.chat.terminal.input_history import input_history
from localgemma_cli.chat.terminal.keys import PromptKeys
from localgemma_cli.chat.terminal.paste_tracker import PasteTracker, update_spans

SECRET = "the secret of the file"
DOCSTRING = '"""Says hello."""\n\n\ndef hello() -> None:\n    """Say it."""\n    print("hello")'
LOOKS_LIKE_MORE = [
    DOCSTRING,
    '"""Doc."""',
    '"""An open one',
    "// main.c\nint main(void) { return 0; }",
    "/* main.c */",
    "/home/me/x.py: line 3: what is wrong?",
    "/help",
    "/exit now",
    "quit",
    "!exit",
    "    indented = True",
    "@secret.txt and (@secret.txt",
]


def sent(server: ChatServer) -> str:
    """The last question that the server got."""
    content: str = server.posts[-1].body["messages"][-1]["content"]
    return content


def test_what_is_pasted_is_sent_as_it_is_and_attaches_nothing(program: Program) -> None:
    (program.folder / "secret.txt").write_text(SECRET)
    (program.folder / "docs").mkdir()
    (program.folder / "override").mkdir()
    with ChatServer() as server:
        server.answers(sse("Fine."))
        with Terminal(program, ["--endpoint", server.url], columns=120) as terminal:
            terminal.wait_for_prompt()
            for text in LOOKS_LIKE_MORE:
                terminal.enter(paste(text.replace("\n", "\r")))
                assert sent(server) == text
            for keys, text in (
                (f"see {paste('@secret.txt')}", "see @secret.txt"),
                (f"{paste('/help me')}\x15\x19", "/help me"),  # cut out and put back
                (f"{paste('/help me')}\x17\x1f", "/help me"),  # taken back
                (f"{paste('/help me')}\x01 \x05 ", "/help me"),  # blanks that are typed are none of it
                ("\x1b[A", "/help me"),  # recalled
                (f'"""\r{paste(DOCSTRING)}\r"""', DOCSTRING),
                ("What of @docs, @override and @gone?", "What of @docs, @override and @gone?"),
                ("//typed", "/typed"),
            ):
                terminal.enter(keys)
                assert sent(server) == text, keys
            terminal.enter("Sum up @secret.txt")
            attached = f"File secret.txt:\n```\n{SECRET}\n```\n\nSum up @secret.txt"
            assert sent(server) == attached
            terminal.enter("/retry")
            assert sent(server) == attached
            terminal.type("/edit\r")
            terminal.wait(r"empty one to cancel\][\s\S]*Sum up @secret.txt")
            terminal.enter("!")
            assert sent(server) == f"{attached}!"
            terminal.enter("/help\x15\x19")
            terminal.wait("Commands:")
            terminal.type("/home/me/x.py: what is wrong?\r")
            terminal.wait(
                r"Unknown command: /home/me/x.py:[\s\S]*Enter again to send[^>]*> /home/me/x.py: what"
            )
            terminal.enter("")
            assert sent(server) == "/home/me/x.py: what is wrong?"
            server.answers(error("not now", 400), sse("Fine."))
            terminal.type(f"{paste('// main.c @secret.txt')}\r")
            terminal.wait(r"not now[\s\S]*> // main.c")
            terminal.enter("")
            assert sent(server) == "// main.c @secret.txt"
            terminal.type("\x04")
            assert terminal.wait_for_end() == 0
        with Terminal(program, ["--endpoint", server.url]) as terminal:  # another run recalls it
            terminal.wait_for_prompt()
            terminal.enter("\x1b[A")
            assert sent(server) == "// main.c @secret.txt"
            terminal.type("\x12Sum up")
            terminal.wait("Sum up @secret.txt!")
            terminal.type("\x12")
            terminal.wait(r"> Sum up @secret.txt\n")
            terminal.type("\r\r")
            terminal.wait("Fine.", count=2)
            assert SECRET in sent(server)


def test_text_from_elsewhere_attaches_nothing(program: Program) -> None:
    (program.folder / "secret.txt").write_text(SECRET)
    lines = [
        {"role": "user", "content": "See @secret.txt"},
        {"role": "assistant", "content": "I see."},
    ]
    (program.folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert program("history", "import", "chat.jsonl").returncode == 0
    with ChatServer() as server:
        server.answers(sse("Fine."))
        local = [*COMMAND, "--endpoint", server.url, "--continue", "-i"]
        shell = f"printf 'Piped: @secret.txt' | {' '.join(local)}"
        with Terminal(program, shell=shell) as terminal:
            terminal.wait("Fine.")
            terminal.wait_for_prompt()
            assert sent(server) == "Piped: @secret.txt"
            terminal.enter("/undo")
            terminal.enter("/retry")
            assert sent(server) == "See @secret.txt"
            terminal.enter("/fork")
            terminal.type("/edit\r")
            terminal.wait("> See @secret.txt", count=2)
            terminal.enter("")
            assert sent(server) == "See @secret.txt"
            terminal.enter("/load 1")
            terminal.enter("/retry")
            assert sent(server) == "See @secret.txt"
        assert not any(SECRET in json.dumps(post.body) for post in server.posts)


def test_what_a_line_means_follows_what_was_typed() -> None:
    for text in LOOKS_LIKE_MORE:
        assert parse(as_pasted(text)) == Question(as_pasted(text))
        assert not opens_block(as_pasted(text))
    assert parse(PromptText("/file a b.txt", ((6, 13),))) == Command("/file", "a b.txt")
    assert isinstance(parse(PromptText("/home/x", ((1, 7),))), Question)
    assert parse(PromptText("//x y", ((3, 5),))) == Question(PromptText("/x y", ((2, 4),)))
    assert parse(PromptText('"""\nx\n"""', ((4, 5),))) == Question(PromptText("x", ((0, 1),)))
    assert opens_block(PromptText('"""\nx"""', ((4, 8),)))
    assert parse(PromptText("/home/x why?")) == UnknownCommand("/home/x", None, long=True)
    for line, name in (("/h", "/help"), ("/clear", "/new"), ("/history rivers", "/sessions")):
        found = parse(PromptText(line))
        assert isinstance(found, Command)
        assert found.name == name


edits = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30), st.text("ab@/", max_size=5), st.booleans())
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(edits)
def test_spans_are_as_a_mark_on_each_character(changes: list[tuple[int, int, str, bool]]) -> None:
    text, marks = "", ""
    spans: Spans = ()
    for one, other, new, pasted in changes:
        begin, end = sorted((min(one, len(text)), min(other, len(text))))
        text = text[:begin] + new + text[end:]
        marks = marks[:begin] + "xo"[pasted] * len(new) + marks[end:]
        spans = update_spans(spans, begin, end, len(new), by_paste=pasted)
        assert "".join("xo"[any(a <= at < b for a, b in spans)] for at in range(len(text))) == marks
        assert all(one[1] < two[0] for one, two in pairwise(spans))
        line = PromptText(text, spans)
        assert line.slice(begin, len(text)).text == text[begin:]
        assert line.map_parts(str.upper) == PromptText(text.upper(), spans)


def tracked(
    action: Callable[[Buffer, PasteTracker], None], known: dict[str, Spans] | None = None
) -> PromptText:
    """What a buffer of the real prompt library holds after `action`."""
    buffer = Buffer(multiline=True)
    tracker = PasteTracker(buffer, {} if known is None else known)

    async def run() -> None:
        action(buffer, tracker)

    asyncio.run(run())
    return PromptText(buffer.text, tracker.pasted)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(st.sampled_from(["type", "paste", "delete", "left", "kill"]), st.text("a@/", max_size=4))
    )
)
def test_whatever_is_edited_the_pasted_characters_are_known(steps: list[tuple[str, str]]) -> None:
    """Typed ones are capitals here, so that each character says itself what it is."""

    def edit(buffer: Buffer, tracker: PasteTracker) -> None:
        for kind, text in steps:
            match kind:
                case "type":
                    for character in text.replace("a", "A").replace("@", "#").replace("/", "|"):
                        buffer.insert_text(character)
                case "paste":
                    tracker.paste(text)
                case "delete":
                    # (the library doubles what is before the cursor where it is asked for more than that)
                    buffer.delete_before_cursor(min(len(text), buffer.cursor_position))
                case "left":
                    buffer.cursor_left(len(text))
                case "kill":
                    buffer.delete(len(text))
            line = PromptText(buffer.text, tracker.pasted)
            pasted = {at for at, character in enumerate(buffer.text) if character in "a@/"}
            assert {at for at in range(len(buffer.text)) if not line.is_typed(at, at + 1)} == pasted

    tracked(edit)


def test_what_is_completed_edited_elsewhere_or_recalled() -> None:
    def complete(buffer: Buffer, tracker: PasteTracker) -> None:
        buffer.insert_text("/he")
        buffer.document = Document("/help")

    assert tracked(complete) == PromptText("/help")

    def in_an_editor(buffer: Buffer, tracker: PasteTracker) -> None:
        tracker.paste("see @a")
        buffer.document = Document("see @b and @c")

    assert tracked(in_an_editor).is_typed(6, 13) is False

    def recall(buffer: Buffer, tracker: PasteTracker) -> None:
        buffer._working_lines.appendleft("/load x")  # as the history gives it
        buffer.working_index = 1
        tracker.begin(PromptText())
        tracker.paste("/home")
        buffer.history_backward()

    assert tracked(recall) == PromptText("/load x")
    assert tracked(recall, {"/load x": ((0, 7),)}) == as_pasted("/load x")


NAME = "@secret.txt"
COPIES: dict[str, tuple[str, ...]] = {  # the lines that are sent; by the last, the pasted name comes again
    "a region that was copied": (f"{paste(NAME)}\x00\x01\x1bw\x05 \x19",),
    "the last word of an earlier line": (paste(f"see {NAME}"), "and \x1b."),
    "a word of an earlier line": (paste(f"see {NAME}"), "and \x1b\x19"),
    "the oldest line": (paste(f"see {NAME}"), "x", "\x1b<"),
    "the oldest line, searched": (paste(f"see {NAME}"), "x", "\x12see\r"),
    "the only line, edited": (paste(f"see {NAME}"), "\x1b[A\x15\x19"),
    "what was cut out long ago": (f"{paste(NAME)}\x15{paste('b' * 80)}" + "\x7f" * 80 + "\x19",),
    "what was cut out in pieces": (f"{paste(f'a {NAME} b')}\x17\x17\x17\x19",),
    "what was cleared after it was copied": (f"{paste(NAME)}\x00\x01\x1bw\x03\x19",),
    "a command": (f"{paste('/exit')}\x00\x01\x1bw\x15\x19",),
    "twice": (f"{paste(NAME)}\x15\x1b2\x19",),
}
VI_COPIES: dict[str, tuple[str, ...]] = {
    "a line": (f"{paste(NAME)}\x1byyp",),
    "a line of an earlier prompt": (f"{paste(NAME)}\x1byy", "\x1bp"),
    "a line that was cut out": (f"{paste(NAME)}\x1bddp",),
    "three of them": (f"{paste(NAME)}\x1bdd3p",),
    "a register": (f'{paste(NAME)}\x1b"ayyo\x1b"ap',),
}


@pytest.mark.parametrize(
    ("keys", "vi"),
    [*((keys, False) for keys in COPIES.values()), *((keys, True) for keys in VI_COPIES.values())],
    ids=[*COPIES, *VI_COPIES],
)
def test_however_it_comes_back_it_stays_pasted(
    keys: tuple[str, ...], vi: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    monkeypatch.chdir(tmp_path)
    for line in prompted(keys, vi=vi):
        assert find_mentions(line.text, line.pasted) == ([], [])
        assert parse(line) == Question(line)
    assert NAME in line.text or "/exit" in line.text


def test_what_was_typed_comes_back_as_typed() -> None:
    _, *lines = prompted(
        (
            paste("the /help for @all and /file x"),
            "/help\x15\x19",
            "see @all\x17\x19",
            "/he\t",
            "/he\t\x17\x1f",
            "/file x\x15\x1f",
            "\x1b[A",
        )
    )
    assert [line.pasted for line in lines] == [()] * 6


def prompted(keys: tuple[str, ...], *, vi: bool = False) -> list[PromptText]:
    """What the real prompt makes of them, a line each."""
    mode = EditingMode.VI if vi else EditingMode.EMACS
    lines: list[PromptText] = []
    with create_pipe_input() as keyboard:
        enter = PromptKeys(
            lambda: PromptText(prompt.default_buffer.text, tracker.pasted),
            lambda: tracker.begin(PromptText()),
            lambda text: tracker.paste(text),
        )
        prompt: PromptSession[str] = PromptSession(
            multiline=True,
            key_bindings=enter.bindings(mode),
            editing_mode=mode,
            completer=ChatCompleter((), list),
            input=keyboard,
            output=DummyOutput(),
        )
        tracker = PasteTracker(prompt.default_buffer, {})
        for each in keys:
            keyboard.send_text(f"{each}\r")
            tracker.begin(PromptText())
            text = prompt.prompt()
            lines.append(PromptText(text, tracker.pasted))
            tracker.remember(lines[-1])
    return lines


def test_the_history_keeps_what_was_pasted(tmp_path: Path) -> None:
    path = tmp_path / "data" / "input-history"
    now: Spans = ()
    history = input_history(path, {}, lambda: now)
    entries: list[tuple[str, Spans]] = [
        ("one", ()),
        ("two\n+three\r", ((0, 3), (4, 7))),
        ("# four", ((2, 6),)),
    ]
    for text, now in entries:  # noqa: B007 - read by the history
        history.append_string(text)
    known: dict[str, Spans] = {"one": ((0, 3),)}
    again = input_history(path, known, tuple)
    assert list(again.load_history_strings()) == [text for text, _ in entries][::-1]
    assert known == {text: spans for text, spans in entries if spans}
