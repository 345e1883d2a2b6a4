"""Ctrl-C wherever something takes its time: the prompt is back within half a second, and nothing is lost."""

import shlex
import shutil
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.chat_server import HOLD, ChatServer, Reply, delta, ending, event, sse
from support.checkpoints import tiny
from support.models import DEMO
from support.patience import patience
from support.program import COMMAND, Program
from support.terminal import SPINNER, Terminal, answer_to

from localgemma_cli.backends.http.backend import connect
from localgemma_cli.backends.http.endpoint import parse_endpoint
from localgemma_cli.chat.interrupt import InterruptibleBackend
from localgemma_cli.conversation import Message
from localgemma_cli.errors import InterruptedAnswer
from localgemma_cli.sampling import Sampling

LIMIT = 0.5  # seconds


def interrupt(terminal: Terminal, state: str, draft: str = "") -> None:
    """Ctrl-C; the prompt is up in time, with `draft` in it."""
    limit = patience(LIMIT)
    row, started = terminal.row, time.monotonic()
    terminal.type("\x03")
    while not (terminal.row >= row and terminal.line.startswith(f"> {draft}".rstrip())):
        assert time.monotonic() < started + 60, f"no prompt in:\n{terminal.text}"
        assert terminal.read(0.005), terminal.text
    seconds = time.monotonic() - started
    limit = max(limit, patience(LIMIT))
    sys.stdout.write(f"{state}: {seconds:.2f} s to the prompt, {limit:.1f} allowed on so busy a machine\n")
    assert seconds < limit, state
    assert not set(SPINNER) & set(terminal.text)
    terminal.type("\x03")  # away with the draft
    terminal.wait_for_prompt()


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reads 512 tokens in some seconds on one core; its weights are in a few wide layers."""
    folder = tmp_path_factory.mktemp("slow")
    model = tiny(
        num_hidden_layers=2, intermediate_size=32768, max_position_embeddings=8192, sliding_window=512
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / name, folder / name)
    return folder


def test_a_ctrl_c_that_comes_before_the_work_is_begun() -> None:
    """So fast on Enter that the thread finds it set."""
    cancel = threading.Event()
    cancel.set()
    with ChatServer() as server:
        server.answers(sse("Never."))
        remote = connect(parse_endpoint(server.url, environ={}), lambda _: None, lambda _: None)
        backend = InterruptibleBackend(remote, lambda: cancel, lambda _: nullcontext(lambda _: None))
        with pytest.raises(InterruptedAnswer):
            list(backend.stream((Message("user", "Hi"),), Sampling(), cancel))
        with pytest.raises(InterruptedAnswer):
            backend.count(())
        assert not server.posts


# Encodes a book again and again, until there is a file `on`: a prompt that comes before did not wait for it.
AGAIN = """
from pathlib import Path
from localgemma_cli.prompts import tokenizer

encode, on = tokenizer.Tokenizer.encode, Path(__file__).with_name("on")


def again(self, text):
    ids = encode(self, text)
    while len(text) > 1_000_000 and not on.exists():
        ids = encode(self, text)
    return ids


tokenizer.Tokenizer.encode = again
"""


def test_ctrl_c_in_every_state_of_a_local_answer(program: Program, slow_model: Path) -> None:
    program = replace(program, before=AGAIN)
    on = program.folder / "before" / "on"
    (program.folder / "book.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 25_000)
    (program.folder / "page.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 250)
    words = [
        "-m",
        str(slow_model),
        "--force",
        "--preset",
        "exact",
        "--max-new-tokens",
        "4000",
        "--temperature",
        "0",
    ]
    with Terminal(program, words) as terminal:
        terminal.wait("exact · /help", seconds=240)
        terminal.type("/file book.txt\r")
        terminal.wait(f"[{SPINNER}] reading the prompt")
        interrupt(terminal, "counting an attachment")
        terminal.type("What is in @book.txt\r")
        terminal.wait(f"[{SPINNER}] stopping the previous answer")
        on.touch()
        terminal.wait("What is in @book.txt", count=2)  # it exceeds the context
        on.unlink()
        terminal.type("\r")
        terminal.wait(f"[{SPINNER}] reading the prompt")
        interrupt(terminal, "tokenizing", draft="What is in @book.txt")
        on.touch()
        terminal.type("What is in @page.txt\r")
        terminal.wait(rf"[{SPINNER}] reading the prompt: \d+ of \d+ tokens · \d+ s", seconds=240)
        interrupt(terminal, "reading a long prompt")
        assert "interrupted before the answer began; /retry asks again" in terminal.text
        for question in ("Hello", "Hello again"):
            terminal.type(f"{question}\r")
            terminal.wait(answer_to(question), seconds=240)
            interrupt(terminal, "answering")
        terminal.type("/summarize\r")
        terminal.wait("summarizing")
        interrupt(terminal, "summarizing")
        locked = sqlite3.connect(program.folder / "home" / "data" / "conversations.sqlite")
        with closing(locked):
            locked.execute("BEGIN IMMEDIATE")
            terminal.type("Is it saved?\r")
            terminal.wait("> Is it saved")
            interrupt(terminal, "saving a question", draft="Is it saved?")
            locked.execute("ROLLBACK")
        text = terminal.enter("/show context", seconds=240)
        assert "2. Hello" in text
        assert "Is it saved" not in text.split("/show context")[-1]
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
    assert "Hello again" in program("history", "show", "1").stdout


@contextmanager
def silent_server(state: str) -> Iterator[str]:
    """An address where a client waits: for its connection, its TLS handshake, or the head of the answer."""
    with socket.socket() as listening, ExitStack() as clients:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        if state == "TCP":  # what waits to be accepted fills the queue; who comes later waits for room in it
            for _ in range(3):
                client = clients.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(listening.getsockname())
        scheme = "https" if state == "TLS" else "http"
        yield f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("state", ["TCP", "TLS", "head"])
def test_ctrl_c_while_connecting(program: Program, state: str) -> None:
    with silent_server(state) as url, Terminal(program, ["--endpoint", url]) as terminal:
        terminal.wait("connecting")
        terminal.type("Hello\r")
        terminal.wait(rf"> Hello\n[{SPINNER}] connecting · \d+ s")
        interrupt(terminal, f"connecting, {state}", draft="Hello")
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0


def test_one_answer_says_what_it_waits_for_and_leaves_no_trace(program: Program) -> None:
    with ChatServer() as server:
        server.answers(Reply((HOLD,)), sse("Good."))
        ask = shlex.join([*COMMAND, "--endpoint", server.url])
        shell = f"{ask} Hello > first; echo status $?; {ask} Hello > second; echo status $?"
        with Terminal(program, shell=shell, interactive=True) as terminal:
            terminal.wait(rf"[{SPINNER}] waiting for the server · \d+ s")
            terminal.type("\x03")
            terminal.wait("status 130")
            terminal.wait("status 0")
            terminal.wait_for_end()
            assert terminal.text.replace("^C", "").split() == ["status", "130", "status", "0"]
    assert [(program.folder / name).read_text() for name in ("first", "second")] == ["\n", "Good.\n"]


PRESSED = """
import signal
import localgemma_cli.chat.terminal.repl as repl

text = repl.PromptText


def pressed(*arguments):
    signal.raise_signal(signal.SIGINT)
    return text(*arguments)


repl.PromptText = pressed
"""


def test_a_ctrl_c_between_two_lines_ends_no_chat(program: Program) -> None:
    """Also one that comes while an earlier one is handled."""
    with ChatServer() as server:
        server.answers(sse("Fine."))
        with Terminal(replace(program, before=PRESSED), ["--endpoint", server.url]) as terminal:
            terminal.wait_for_prompt()
            assert "Fine." in terminal.enter("Hello")
            assert "Commands:" in terminal.enter("/help")
            terminal.type("\x04")
            assert terminal.wait_for_end() == 0


def test_nothing_turns_for_those_who_want_it_quiet_or_read_aloud(program: Program) -> None:
    for option in ("-q", "--accessible"):
        with ChatServer() as server:
            server.answers(Reply((1.5, event(delta("Good.")), ending())))
            with Terminal(program, [option, "--endpoint", server.url, "Hello"]) as terminal:
                assert terminal.wait_for_end() == 0
                assert terminal.text.split() == ["Good."]
                assert not any(character.encode() in terminal.raw for character in SPINNER)
