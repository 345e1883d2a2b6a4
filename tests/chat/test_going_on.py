"""Only its user ends a chat: whatever an answer or a command raises is one line, and the prompt again."""

import re

from support.chat_server import ChatServer, sse
from support.program import Program
from support.terminal import Terminal

# The real program, with a server's answer and the clipboard made to fail as libraries do.
FAULTS = '''
import os, sys
import localgemma_cli.chat.slash.actions as actions
import localgemma_cli.chat.slash.arguments as arguments
import localgemma_cli.backends.http.backend as backend


class PanicException(BaseException):
    """As a library in Rust raises it."""


def fail(text):
    word = text.split()[-1]
    if word == "recursion":
        fail(text)
    error = {"panic": PanicException, "memory": MemoryError, "value": ValueError, "io": OSError}.get(word)
    if error is not None:
        raise error("\\x1b[2J it broke\\nin two lines " + "x" * 5000)


class Failing(backend.HttpBackend):
    def stream(self, messages, sampling, cancel):
        fail(messages[-1].content)
        for event in super().stream(messages, sampling, cancel):
            yield event
            fail("late " + messages[-1].content.removeprefix("late "))


backend.HttpBackend = Failing
stats = actions._ACTIONS["/stats"]
actions._ACTIONS = {**actions._ACTIONS, "/system": lambda session, facts, text: fail(text)}
'''
KINDS = ("panic", "memory", "value", "io", "recursion")


def test_no_error_ends_a_chat_and_what_was_typed_is_kept(program: Program) -> None:
    (program.folder / "faults").mkdir()
    (program.folder / "faults" / "sitecustomize.py").write_text(FAULTS)
    program = program.with_environment(PYTHONPATH=str(program.folder / "faults"))
    many = "9" * 5000
    with ChatServer() as server:
        server.answers(sse("Fine."))
        with Terminal(program, ["--endpoint", server.url], columns=120) as terminal:
            terminal.wait_for_prompt()
            told = 0
            for kind in KINDS:
                for line in (f"Hello {kind}", f"/system {kind}"):
                    told += 1
                    terminal.type(f"{line}\r")
                    terminal.wait(rf"[\s\S]*> {line}\n", count=1)
                    text = terminal.wait("Unexpected error", count=told)
                    terminal.wait(rf"with -v to see where it happened\.\n(\n|\[.*\n)*> {line}\n")
                    assert text.count("> Hello") + text.count("> /system") < 40
                    terminal.type("\x03")
                    terminal.wait_for_prompt()
            assert "Fine." in terminal.enter("Hello")
            for command in ("/undo", "/edit", "/copy"):
                assert f"Usage: {command} [N]" in terminal.enter(f"{command} {many}")
            assert "Saved conversation not found: '999" in terminal.enter(f"/load {many}")
            for line in (
                "/file /proc/self/mem",
                "/file ~nobody-at-all/x",
                f"/file {many}",
            ):
                assert re.search("Cannot read|larger than", terminal.enter(line))
            assert terminal.text.count("Unexpected error") == told
            assert "Fine." in terminal.enter("See @/proc/self/mem")
            assert "\x1b[2J it" not in terminal.raw.decode(errors="replace")
            terminal.type("\x04")
            assert terminal.wait_for_end() == 0
    assert "## You\n\nHello\n" in program("history", "show", "1").stdout
