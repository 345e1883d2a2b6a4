"""The interactive chat, driven through a real pseudo-terminal."""

import os
import signal
import subprocess
import time
from dataclasses import replace

import pytest
from support.program import COMMAND, HELD, Program
from support.terminal import Terminal, answer_to

DEMO = ["-m", "demo", "--temperature", "0"]
# slow, and does not end by itself before the context is full
RAMBLING = ["-m", "demo", "--dtype", "float32", "--temperature", "20", "--seed", "3"]


def test_two_turns_with_recall_then_leave(program: Program) -> None:
    with Terminal(program, DEMO) as terminal:
        terminal.wait_for_prompt()
        terminal.type("Hello, my name is Ada.\r")
        terminal.wait_for_prompt()
        terminal.type("What is my name?\r")
        terminal.wait(r"What is my name\?[\s\S]*Ada")
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0


GATE = """
import sys, time
from pathlib import Path


class Gate:
    def find_spec(name, path=None, target=None):
        while name == "torch" and not Path(__file__).with_name("open").exists():
            time.sleep(0.01)


sys.meta_path.insert(0, Gate)
"""


def test_the_prompt_is_up_before_torch_and_what_is_typed_then_is_not_lost(program: Program) -> None:
    with Terminal(replace(program, before=GATE, cold=True), DEMO) as terminal:
        terminal.wait_for_prompt()  # while torch is not imported
        terminal.type("What is the ")
        terminal.type("memory preset?\r")
        terminal.wait(r"> What is the memory preset\?")
        (program.folder / "before" / "open").touch()
        terminal.wait("4[- ]bit")
        terminal.wait_for_prompt()


def test_what_is_typed_during_an_answer_waits_for_the_next_prompt(program: Program) -> None:
    with Terminal(program, DEMO) as terminal:
        terminal.wait_for_prompt()
        terminal.type("What is the memory preset?\r")
        terminal.wait(r"> What is the memory preset\?")
        terminal.type("/help\r")
        terminal.wait("4[- ]bit")
        terminal.wait("Commands:")
        terminal.wait_for_prompt()


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(program: Program) -> None:
    with Terminal(replace(program, before=HELD), RAMBLING) as terminal:
        terminal.wait("exact · /help")  # the model is there
        terminal.type("Hello\r")
        terminal.wait(answer_to("Hello"))
        terminal.type("\x03")
        terminal.wait(r"\[interrupted")
        terminal.wait_for_prompt()
        terminal.type("Once more\r")
        terminal.wait(answer_to("Once more"))
        terminal.type("\x03")
        terminal.wait(r"\[interrupted", count=2)
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0


def test_ctrl_c_ten_times_in_every_state_leaves_a_working_prompt(program: Program) -> None:
    with Terminal(replace(program, cold=True), RAMBLING) as terminal:
        terminal.wait_for_prompt()
        terminal.type("\x03" * 10)
        terminal.wait_for_prompt()
        terminal.type("while it loads\r" + "\x03" * 10)
        terminal.wait_for_prompt()
        terminal.wait("exact · /help")
        terminal.type("\x03Hello\r")
        terminal.wait(answer_to("Hello"))
        for _ in range(10):
            terminal.type("\x03")
            time.sleep(0.05)
        terminal.wait_for_prompt()
        terminal.type("/help\r")
        terminal.wait("Commands:")


def test_ctrl_c_clears_the_line(program: Program) -> None:
    with Terminal(program, DEMO) as terminal:
        terminal.wait_for_prompt()
        terminal.type("something")
        terminal.wait("> something")
        terminal.type("\x03")
        terminal.wait_for_prompt()


def test_slash_commands(program: Program) -> None:
    with Terminal(program, [*DEMO, "-s", "Answer in capital letters."]) as terminal:
        terminal.wait_for_prompt()
        terminal.type("/help\r")
        for name in ("Commands:", "/help", "/new", "/system", "/exit"):
            terminal.wait(name)
        terminal.wait_for_prompt()
        terminal.type("/sistem\r")
        terminal.wait("Did you mean /system")
        terminal.wait_for_prompt()
        terminal.type("/system\r")
        terminal.wait("System text: Answer in capital letters")
        terminal.wait_for_prompt()
        terminal.type("/system -\r")
        terminal.wait("There is no system text")
        terminal.wait_for_prompt()
        terminal.type("Hello, my name is Ada.\r")
        terminal.wait_for_prompt()
        terminal.type("!new session\r")
        terminal.wait("new conversation")
        terminal.wait_for_prompt()
        terminal.type("//exit\r")  # a question for the model, not the command
        terminal.wait(answer_to("//exit"))
        terminal.wait_for_prompt()
        terminal.type("!exit\r")
        assert terminal.wait_for_end() == 0


@pytest.mark.parametrize("word", ["/exit", "!exit", "quit"])
def test_words_that_leave(program: Program, word: str) -> None:
    with Terminal(program, DEMO) as terminal:
        terminal.wait_for_prompt()
        terminal.type(f"{word}\r")
        assert terminal.wait_for_end() == 0


def test_a_pasted_page_is_one_message(program: Program) -> None:
    page = "\n".join(f"line {number}" for number in range(30))
    with Terminal(program, DEMO) as terminal:
        terminal.wait_for_prompt()
        terminal.type(f"\x1b[200~{page}\x1b[201~")
        terminal.wait("line 29")
        terminal.type("\r")
        terminal.wait_for_prompt()
        assert terminal.text.count("\n> ") <= 2


def test_alt_enter_starts_a_new_line(program: Program) -> None:
    with Terminal(program, DEMO) as terminal:
        terminal.wait_for_prompt()
        terminal.type("one\x1b\rtwo")
        terminal.wait(r"> one\n  two")


def test_a_pipe_then_the_chat_on_the_terminal(program: Program) -> None:
    shell = f"echo 'My name is Ada.' | {' '.join(COMMAND)} {' '.join(DEMO)} -i"
    with Terminal(program, shell=shell) as terminal:
        terminal.wait_for_prompt()
        terminal.type("What is my name?\r")
        terminal.wait(r"What is my name\?[\s\S]*Ada")
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0


def test_a_model_that_cannot_be_loaded_ends_the_chat_with_its_reason(program: Program) -> None:
    with Terminal(
        program, ["-m", "2b", "--preset", "memory", "--host-memory", "64GiB", "--offline"]
    ) as terminal:
        terminal.wait("--model demo")
        assert terminal.wait_for_end() == 4


def test_a_dumb_terminal_still_chats(program: Program) -> None:
    with Terminal(program.with_environment(TERM="dumb"), DEMO) as terminal:
        terminal.type("What is the memory preset?\r")
        terminal.wait("4[- ]bit")


def test_interactive_without_a_terminal_is_refused(program: Program) -> None:
    done = subprocess.run(
        [*COMMAND, *DEMO, "-i"],
        input="Hello",
        text=True,
        capture_output=True,
        env=program.env,
        cwd=program.folder,
        start_new_session=True,  # no controlling terminal
        timeout=600,
        check=False,
    )
    assert done.returncode == 2
    assert "terminal" in done.stderr


def test_terminal_settings_are_restored(program: Program) -> None:
    shell = f"stty -a > before; {' '.join(COMMAND)} {' '.join(DEMO)}; stty -a > after"
    with Terminal(program, shell=shell) as terminal:
        terminal.wait_for_prompt()
        terminal.type("\x04")
        terminal.wait_for_end()
    assert (program.folder / "before").read_text() == (program.folder / "after").read_text()


def test_a_hang_up_ends_the_program(program: Program) -> None:
    with Terminal(program, RAMBLING) as terminal:
        terminal.wait("exact · /help")
        pid = terminal.child.pid
        terminal.type("Hello\r")
        terminal.wait(answer_to("Hello"))
        os.kill(pid, signal.SIGHUP)
        terminal.wait_for_end()
