"""However a chat is stopped: the terminal is as it was, and what was said is saved."""

import os
import random
import re
import signal
import subprocess
import termios
import time
from contextlib import suppress
from dataclasses import replace
from itertools import count
from threading import Timer

import pytest
from support.patience import patience
from support.program import COMMAND, HELD, Program
from support.terminal import Terminal, answer_to

from localgemma_cli.sessions.store import Store

DEMO = ["-m", "demo", "--temperature", "0"]
# slow, and does not end by itself before the context is full
RAMBLING = ["-m", "demo", "--dtype", "float32", "--temperature", "20", "--seed", "3"]
ANSWERING = answer_to("Hello")


def begin_of_a_long_answer(terminal: Terminal) -> str:
    """Its first word."""
    terminal.type("Go on and on\r")
    terminal.wait(answer_to("Go on and on"))
    return terminal.text.split("Go on and on\n")[1].split()[0]


def wait_until_it_is_on_disk(program: Program, terminal: Terminal, early: str) -> None:
    """While the answer has no end; a word that is shown is on disk some moments later."""
    store = Store(program.folder / "home" / "data" / "conversations.sqlite")
    deadline = time.monotonic() + patience(60)
    while early not in store.conversation(1, "demo").turns[-1].answer.content:
        assert time.monotonic() < deadline
        terminal.read()
    store.close()


def assert_kept(program: Program, conversation: str, early: str) -> None:
    shown = program("history", "show", conversation).stdout
    assert "Hello, my name is Ada." in shown
    assert early in shown.split("Go on and on")[1]


def settings_of_a_new_terminal() -> list[object]:
    ours, theirs = os.openpty()
    try:
        return termios.tcgetattr(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def assert_pasting_is_plain_again(terminal: Terminal) -> None:
    assert terminal.raw.rindex(b"\x1b[?2004l") > terminal.raw.rindex(b"\x1b[?2004h")


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("state", ["prompt", "answering"])
def test_signals_that_end_the_program(program: Program, signal_number: int, state: str) -> None:
    with Terminal(replace(program, before=HELD), RAMBLING) as terminal:
        terminal.wait("exact · /help")
        if state == "answering":
            terminal.type("Hello\r")
            terminal.wait(ANSWERING)
            time.sleep(0.3)
        os.kill(terminal.child.pid, signal_number)
        started = time.monotonic()
        while terminal.read():
            assert time.monotonic() - started < 120, terminal.text
        assert time.monotonic() - started < patience(5)
        assert termios.tcgetattr(terminal.child.child_fd) == settings_of_a_new_terminal()
        assert_pasting_is_plain_again(terminal)
    if state == "answering":
        shown = program("history", "show", "1").stdout
        assert re.search(r"## You\n\nHello\n+## Gemma\n+.*\S", shown)


def test_a_signal_while_it_loads_gives_the_shell_its_terminal_back(program: Program) -> None:
    shell = (
        f"stty -a > before; {' '.join([*COMMAND, *RAMBLING])} & echo pid $!; fg; stty -a > after; echo left"
    )
    with Terminal(program, shell=f"{shell}; read -r", interactive=True) as terminal:
        found = re.search(r"pid (\d+)", terminal.wait(r"pid \d+"))
        assert found
        terminal.wait_for_prompt()
        os.kill(int(found[1]), signal.SIGTERM)
        started = time.monotonic()
        terminal.wait("left")
        assert time.monotonic() - started < patience(5)
        assert (program.folder / "before").read_text() == (program.folder / "after").read_text()
        assert_pasting_is_plain_again(terminal)


def test_a_terminal_that_is_closed_in_an_answer(program: Program) -> None:
    with Terminal(replace(program, before=HELD), RAMBLING) as terminal:
        terminal.wait("exact · /help")
        terminal.enter("/set max-new-tokens 5")
        terminal.enter("Hello, my name is Ada.")
        terminal.enter("/set max-new-tokens 4000")
        early = begin_of_a_long_answer(terminal)
        terminal.child.ptyproc.fileobj.close()
        deadline = time.monotonic() + patience(5)
        while terminal.child.isalive():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert_kept(program, "1", early)
    assert program(*DEMO, "-c", "Hello!").returncode == 0


def test_killed_at_any_moment_every_finished_turn_is_kept(program: Program) -> None:
    moments = random.Random(5)
    path = program.folder / "home" / "data" / "conversations.sqlite"
    seen = 0
    for session in range(1, 11):
        finished = []
        with Terminal(program, [*DEMO, "--max-new-tokens", "12"]) as terminal:
            terminal.wait("exact · /help")
            before = session % 5 + 1  # turns, and the kill comes somewhere in the next two
            for number in count(1):
                question, began = f"Question {number}", time.monotonic()
                with suppress(AssertionError, OSError):  # the program ended
                    terminal.enter(question)
                    finished.append(question)
                if not terminal.child.isalive():
                    break
                if number == before:
                    moment = moments.uniform(0, 2) * (time.monotonic() - began)
                    kill = Timer(moment, os.kill, (terminal.child.pid, signal.SIGKILL))
                    kill.start()
            kill.join()
            assert not terminal.child.isalive()
            assert terminal.child.signalstatus == signal.SIGKILL
        store = Store(path)
        assert store.notice is None
        assert store.summaries("Question", limit=1)
        saved = store.conversation(session, "demo").turns
        assert [turn.question.content for turn in saved[: len(finished)]] == finished
        for turn in saved[: len(finished)]:
            assert turn.finish_reason in ("stop", "length")
            assert turn.answer.token_ids
        assert len(saved) <= len(finished) + 1
        seen += len(finished)
        store.close()
    assert seen >= 30
    assert program(*DEMO, "-c", "Hello!").returncode == 0


def local_flags(terminal: Terminal) -> int:
    """ECHO and ICANON of the terminal's line mode."""
    flags: int = termios.tcgetattr(terminal.child.child_fd)[3] & (termios.ECHO | termios.ICANON)
    return flags


def test_ctrl_z_and_back_at_the_prompt_and_in_an_answer(program: Program) -> None:
    back = "echo stopped; read -r; fg"
    shell = f"{' '.join([*COMMAND, *RAMBLING])}; {back}; {back}; echo end"
    with Terminal(program, shell=shell, interactive=True) as terminal:
        terminal.wait("exact · /help")
        terminal.type("half a li\x1a")
        terminal.wait(r"^stopped|\nstopped")
        assert local_flags(terminal) == termios.ECHO | termios.ICANON
        terminal.type("\n")
        while local_flags(terminal) != 0:  # until then the terminal itself would echo what is typed
            assert terminal.read()
        terminal.type("ne")
        terminal.wait("> half a line")
        terminal.type("\x03Hello\r")
        terminal.wait(ANSWERING)
        terminal.type("\x1a")
        terminal.wait("stopped", count=2)
        terminal.raw = b""
        terminal.type("\n")
        terminal.read(0.5)
        while b"\x1b[?2004h" not in terminal.raw:
            assert terminal.read()
        assert local_flags(terminal) == 0
        terminal.type("\x03")
        terminal.wait(r"\[interrupted|\[token limit")
        terminal.wait_for_prompt()
        started = time.monotonic()
        terminal.type("\x04")
        terminal.wait("end$|end\n")
        assert time.monotonic() - started < patience(2)


def test_ctrl_c_ten_times_in_the_commands_that_take_time(program: Program) -> None:
    with Terminal(replace(program, before=HELD), RAMBLING) as terminal:
        terminal.wait("exact · /help")
        for line in ("Hello", "Hello again", "/summarize", "/retry", "/continue"):
            terminal.type(f"{line}\r")
            terminal.wait(answer_to(line))
            for _ in range(10):
                terminal.type("\x03")
                time.sleep(0.02)
            terminal.wait_for_prompt()
        text = terminal.enter("/show context")
        assert "1. Hello" in text
        assert "2. Hello again" in text
        started = time.monotonic()
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
        assert time.monotonic() - started < patience(2)


def test_killed_in_an_answer_and_gone_on_with(program: Program) -> None:
    with Terminal(replace(program, before=HELD), [*DEMO, "--dtype", "float32"]) as terminal:
        terminal.wait("exact · /help")
        terminal.enter("Hello, my name is Ada.")
        terminal.enter("/set temperature 20")
        terminal.enter("/set seed 3")
        terminal.enter("/save ada")
        early = begin_of_a_long_answer(terminal)
        wait_until_it_is_on_disk(program, terminal, early)
        os.kill(terminal.child.pid, signal.SIGKILL)
    assert_kept(program, "ada", early)
    program("history", "search", "Ada")
    with Terminal(program, [*DEMO, "-c", "--max-new-tokens", "30"]) as terminal:
        terminal.wait_for_prompt()
        text = terminal.text
        # on a fast processor the answer fills the screen
        assert "> Hello, my name is Ada." in text or "[1 earlier turn not shown" in text
        assert "[interrupted]" in text
        terminal.wait("exact · /help")
        terminal.enter("/undo")
        assert "Ada" in terminal.enter("What is my name?")
        terminal.type("\x04")
        terminal.wait(r"resume with: localgemma --session ada")
    both = [
        subprocess.Popen(
            [*COMMAND, *DEMO, "--session", "ada", "What is my name?"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env=program.env,
            cwd=program.folder,
        )
        for _ in range(2)
    ]
    assert all("Ada" in process.communicate()[0] for process in both)
    assert program("history", "show", "ada").stdout.count("What is my name?") == 3
