"""What is typed while no prompt is up: never glued to a draft, never sent after a Ctrl-C, always seen."""

import threading

from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.key_binding import KeyPress
from support.chat_server import HOLD, ChatServer, Reply, Request, delta, error, event, sse
from support.program import Program
from support.terminal import Terminal, paste

from localgemma_cli.chat.terminal.completion import ChatCompleter
from localgemma_cli.chat.terminal.terminal_state import parse_keys
from localgemma_cli.chat.terminal.typed_ahead import format_held, split_keys


def questions(server: ChatServer) -> list[str]:
    return [post.body["messages"][-1]["content"] for post in server.posts]


def test_lines_typed_ahead_wait_behind_a_draft_and_after_ctrl_c(program: Program) -> None:
    asked, typed = threading.Event(), threading.Event()

    def refuses(_: Request) -> Reply:
        asked.set()
        assert typed.wait(240)
        return error("not now", 400)

    with ChatServer() as server:
        server.answers(refuses, sse("Fine."))
        with Terminal(program, ["--endpoint", server.url], columns=120) as terminal:
            terminal.wait_for_prompt()
            terminal.type("the draft\r")
            assert asked.wait(240)
            terminal.type("second\rthird\runfinished")
            terminal.wait("waiting for the server")
            terminal.read(0.5)
            typed.set()
            terminal.wait(r"not now[\s\S]*not sent: “second”, “third”, “unfinished”\]\n> the draft\n")
            terminal.type("\r")  # the draft alone
            for line, waiting in (
                ("second", r"“third”, “unfinished”\]\n"),
                ("third", r"“unfinished”\]\n"),
                ("unfinished", ""),
            ):
                terminal.wait(rf"Fine\.\n+.*{waiting}> {line}\n")
                assert "not now" not in questions(server)
                terminal.type("\r")
            terminal.wait("Fine.", count=4)
            terminal.wait_for_prompt()
            assert questions(server) == ["the draft", "the draft", "second", "third", "unfinished"]
            server.answers(Reply((event(delta("Well ")), HOLD)))
            terminal.type("Go on\r")
            terminal.wait("Well")
            terminal.type("sent by nobody\rnor this\r")
            terminal.read(0.5)
            terminal.type("\x03")
            terminal.wait(r"interrupted[\s\S]*not sent: “nor this”\]\n> sent by nobody\n")
            terminal.type("\x03")  # away with it: the next one comes
            terminal.wait(r"> nor this\n")
            terminal.type("\x03")
            terminal.wait_for_prompt()
            server.answers(sse("Fine."))
            terminal.enter("at last")
            assert questions(server)[5:] == ["Go on", "at last"]
            server.answers(sse("Fine, and then more."), sse("Second."))
            terminal.type("one\rtwo\r")  # nothing went wrong: what is typed ahead is sent in its turn
            terminal.wait("Second.")
            assert questions(server)[7:] == ["one", "two"]
            terminal.type("\x04")
            assert terminal.wait_for_end() == 0


def test_tab_and_enter_typed_fast_complete(program: Program) -> None:
    (program.folder / "rivers notes.txt").write_text("The Nile.")
    with ChatServer() as server:
        server.answers(sse("Fine."))
        with Terminal(program, ["--endpoint", server.url], columns=120) as terminal:
            terminal.wait_for_prompt()
            assert "Commands:" in terminal.enter("/he\t")
            assert "attached to your next message: rivers notes.txt" in terminal.enter("/file riv\t")
            terminal.enter("/file -")
            terminal.enter("See @riv\t")
            assert "The Nile." in questions(server)[-1]
            terminal.enter("/save rivers")
            assert "[resumed conversation 1, 1 turn]" in terminal.enter("/load riv\t")
            assert "render             plain" in terminal.enter("/set render pl\t")
            assert "Unknown command: /zz" in terminal.enter("/zz\t\t")


def test_a_tab_ends_no_chat() -> None:
    def broken() -> list[str]:
        raise OSError("the disk is gone")

    completer = ChatCompleter((), broken)
    for text in ("/load x", "/file a\0b/c", "@a\0b/c", "/file \ud800/x"):
        assert not list(completer.get_completions(Document(text), CompleteEvent(completion_requested=True)))


def test_split_lines_keys() -> None:
    def held(lines: list[tuple[KeyPress, ...]]) -> str:
        return format_held(lines).split(": ", 1)[1]

    keys = parse_keys(f"onf\x7fe\rtwo \x1b\rmore\r{paste('three')} and\rx\x15four")
    assert held(split_keys(keys, swapped=False)) == "“one”, “two more”, “three and”, “four”]"
    assert held(split_keys(parse_keys("a\rb\x1b\rc"), swapped=True)) == "“a b”, “c”]"
