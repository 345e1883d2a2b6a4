"""The interactive chat with a server, driven through a real pseudo-terminal."""

from collections.abc import Iterator

import pytest
from support.chat_server import HANG_UP, HOLD, ChatServer, Reply, delta, error, event, page, sse
from support.program import Program
from support.terminal import Terminal


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as running:
        yield running


def contents(server: ChatServer, at: int = -1) -> list[str]:
    return [f"{message['role']}: {message['content']}" for message in server.posts[at].body["messages"]]


def interrupt_before_the_first_byte(terminal: Terminal, server: ChatServer) -> None:
    terminal.wait("gemma-test · 127")
    terminal.type("First\r")
    while not server.posts:
        terminal.read()
    terminal.type("\x03")
    terminal.wait(r"\[interrupted before the answer began; /retry")
    terminal.wait_for_prompt()


def interrupt_the_second(terminal: Terminal, said: str) -> None:
    terminal.wait(said)
    terminal.type("\x03")
    terminal.wait(r"\[interrupted; partial answer kept")
    terminal.wait_for_prompt()


def test_turns_system_text_and_a_new_conversation(program: Program, server: ChatServer) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 5}
    thought = event({"choices": [{"index": 0, "delta": {"reasoning_content": "Let me\nsee."}}]})
    first = Reply((thought, *sse("Answer", " one.", usage=usage).parts))
    server.answers(first, sse("Answer two."), sse("Answer three."))
    with Terminal(program, ["--endpoint", server.url, "-s", "Be brief."]) as terminal:
        terminal.wait("gemma-test · 127")
        terminal.type("First\r")
        terminal.wait(r"Thinking: Let me *\n *see\. *\n *\n *Answer one")
        terminal.wait("25 tokens")
        terminal.wait_for_prompt()
        terminal.type("Second\r")
        terminal.wait("Answer two")
        terminal.wait_for_prompt()
        assert contents(server) == [
            "system: Be brief.",
            "user: First",
            "assistant: Answer one.",
            "user: Second",
        ]
        terminal.type("/system Shout.\r")
        terminal.wait("System text: Shout")
        terminal.wait_for_prompt()
        terminal.type("/new\r")
        terminal.wait("new conversation")
        terminal.wait_for_prompt()
        terminal.type("Third\r")
        terminal.wait("Answer three")
        assert contents(server) == ["system: Shout.", "user: Third"]
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0


def test_a_broken_answer_stays_in_the_conversation_marked(program: Program, server: ChatServer) -> None:
    server.answers(Reply((event(delta("Half an")), event(delta(" answer")), HANG_UP)), sse("The rest."))
    with Terminal(program, ["--endpoint", server.url]) as terminal:
        terminal.wait_for_prompt()
        terminal.type("First\r")
        terminal.wait(
            r"Half an answer[\s\S]*closed the connection[\s\S]*\[answer cut off; partial answer kept"
        )
        terminal.wait_for_prompt()
        terminal.type("Go on\r")
        terminal.wait("The rest")
        assert contents(server) == ["user: First", "assistant: Half an answer", "user: Go on"]


def test_what_could_not_be_sent_is_there_to_edit(program: Program, server: ChatServer) -> None:
    server.answers(error("bad luck"), sse("Good."))
    with Terminal(program, ["--endpoint", server.url]) as terminal:
        terminal.wait_for_prompt()
        terminal.type("First\r")
        terminal.wait("bad luck")
        terminal.wait(r"> First", count=2)
        terminal.type(" again\r")
        terminal.wait("Good")
        assert contents(server) == ["user: First again"]


def test_ctrl_c_before_the_first_byte_and_in_the_answer(program: Program, server: ChatServer) -> None:
    server.answers(Reply((HOLD,)), Reply((event(delta("So far")), HOLD)), sse("Done."))
    with Terminal(program, ["--endpoint", server.url]) as terminal:
        interrupt_before_the_first_byte(terminal, server)
        terminal.type("Second\r")
        interrupt_the_second(terminal, "So far")
        terminal.type("Third\r")
        terminal.wait("Done")
        assert contents(server)[-2:] == ["assistant: So far", "user: Third"]
        while len(server.gone) < 2:
            terminal.read()


@pytest.mark.parametrize("owner", ["vllm", "sglang", "someone"])
def test_continue_goes_on_with_the_answer_where_the_server_can(
    program: Program, server: ChatServer, owner: str
) -> None:
    models = {"object": "list", "data": [{"id": "gemma-test", "object": "model", "owned_by": owner}]}
    server.pages["/v1/models"] = page(models)
    server.answers(Reply((HOLD,)), Reply((event(delta("Half an")), HOLD)), sse(" answer."), sse("Fine."))
    with Terminal(program, ["--endpoint", server.url, "-s", "Be brief."]) as terminal:
        interrupt_before_the_first_byte(terminal, server)
        terminal.type("/continue\r")
        interrupt_the_second(terminal, "Half an")
        terminal.type("/continue\r")
        terminal.wait(r"answer\.")
        terminal.wait_for_prompt()
        goes_on = {
            key: server.posts[-1].body.get(key) for key in ("continue_final_message", "add_generation_prompt")
        }
        if owner == "someone":
            assert "Go on" in contents(server)[-1]
            assert set(goes_on.values()) == {None}
            return
        assert contents(server, 1) == ["system: Be brief.", "user: First"]
        assert contents(server) == ["system: Be brief.", "user: First", "assistant: Half an"]
        assert goes_on == {"continue_final_message": True, "add_generation_prompt": False}
        terminal.enter("Second")
        assert contents(server)[-2:] == ["assistant: Half an answer.", "user: Second"]
        terminal.enter("/save two words")
        terminal.enter("/save")
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
        assert terminal.text.count("resume with: localgemma --session 'two words'") == 3
    assert "Half an answer." in program("history", "show", "1").stdout


def test_a_full_context_drops_the_oldest_turns(program: Program, server: ChatServer) -> None:
    def strict(request: object) -> Reply:
        full = len(server.posts[-1].body["messages"]) > 3
        return error("This model's maximum context length is 9 tokens") if full else sse("Fine.")

    server.answers(strict)
    with Terminal(program, ["--endpoint", server.url]) as terminal:
        for turn, question in enumerate(("First", "Second", "Third"), start=1):
            terminal.wait_for_prompt()
            terminal.type(f"{question}\r")
            terminal.wait("Fine", count=turn)
        terminal.wait("oldest turn dropped: “First”")
        assert contents(server) == ["user: Second", "assistant: Fine.", "user: Third"]


def test_a_server_that_is_not_there_ends_the_chat_with_its_reason(program: Program) -> None:
    with Terminal(program, ["--endpoint", "http://127.0.0.1:9"]) as terminal:
        terminal.wait("Connection refused")
        assert terminal.wait_for_end() == 7


def test_a_server_s_words_cannot_drive_the_terminal(program: Program, server: ChatServer) -> None:
    server.answers(error("red \x1b[31m\x1b]0;title\x07 words"))
    with Terminal(program, ["--endpoint", server.url]) as terminal:
        terminal.wait_for_prompt()
        terminal.type("First\r")
        terminal.wait("red ␛")
        assert b"\x1b]0;title" not in terminal.raw


def test_an_editor_that_fails_is_one_line_and_the_text_stays(program: Program, server: ChatServer) -> None:
    editor, folder = program.folder / "editor", program.folder / "tmp"
    editor.write_text("#!/bin/sh\nprintf 'caf\\351' > \"$1\"\n")
    editor.chmod(0o755)
    folder.mkdir()
    server.answers(sse("Fine."))
    here = program.with_environment(EDITOR=str(editor), VISUAL="", TMPDIR=str(folder))
    with Terminal(here, ["--endpoint", server.url, "--no-save"]) as terminal:
        terminal.wait("gemma-test · 127")
        terminal.type("one\x18\x05")
        terminal.wait(r"The editor saved text that is not UTF-8\.\n.*\n> one")
        assert list(folder.iterdir()) == []
        folder.rmdir()
        terminal.type(" two\x18\x05")
        terminal.wait(r"Cannot use the editor: No such file or directory\.\n.*\n> one two")
        terminal.enter("")
        assert contents(server) == ["user: one two"]
        assert "Exception" not in terminal.text
