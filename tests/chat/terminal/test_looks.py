"""What the chat looks like where a terminal is narrow, dumb, colourless, or read aloud."""

import json
import os
import re
import shutil

import pytest
from support.program import COMMAND, Program
from support.terminal import Terminal

from localgemma_cli.sanitize import visible

DEMO = ["-m", "demo", "--temperature", "0"]
QUESTION = "What does the memory preset do?"
COLOUR = rb"\x1b\[[0-9;]*3[0-7]m"


def test_a_narrow_terminal(program: Program) -> None:
    with Terminal(program, DEMO, columns=40) as terminal:
        terminal.wait("exact · /help")
        terminal.enter(QUESTION)
        terminal.enter("/help")
        terminal.wait(r"\n demo · exact · \d+/1024 tokens(\n|$)")  # no half a figure


def test_for_screen_readers_nothing_is_drawn_again(program: Program) -> None:
    with Terminal(program, [*DEMO, "--accessible"]) as terminal:
        terminal.wait_for_prompt()
        terminal.type(f"{QUESTION}\r")
        terminal.wait("4[- ]bit")
        terminal.wait_for_prompt()
        answer = terminal.raw.split(b"do?")[-1].rsplit(b"> ", 1)[0]
        assert b"\x1b[K" not in answer
        assert b"exact \xc2\xb7 /help" not in terminal.raw  # there is no bar
        assert "⠋" not in terminal.text


def test_without_colours_and_as_the_model_wrote_it(program: Program) -> None:
    with Terminal(program.with_environment(NO_COLOR="1"), [*DEMO, "--plain"]) as terminal:
        terminal.wait("exact · /help")
        terminal.enter(QUESTION)
        shown = terminal.enter("/set")
        assert "render             plain" in shown
        assert "constraint" not in shown  # nor anything else that cannot be set
        assert not re.search(COLOUR, terminal.raw.split(b"do?")[-1].split(b"/set")[0])
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0


def test_a_dumb_terminal_gets_no_escapes(program: Program) -> None:
    with Terminal(program.with_environment(TERM="dumb"), DEMO) as terminal:
        terminal.wait(r"\n>")
        terminal.type(f"{QUESTION}\r")
        terminal.wait("4[- ]bit")
        terminal.wait(r"\n>", count=2)
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
        assert b"\x1b" not in terminal.raw


def test_control_characters_pass_a_pipe_and_never_a_terminal(program: Program) -> None:
    """At this temperature the bundled model writes bytes of every kind."""
    words = ["-m", "demo", "-q", "--plain", "--temperature", "20", "--seed", "3", "--max-new-tokens", "300"]
    written = program(*words, "Hello").stdout
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f]", written)
    assert visible(written) != written
    assert program(*words, "--sanitize", "Hello").stdout == visible(written)
    answer = json.loads(program(*words, "--sanitize", "--json", "Hello").stdout)
    assert answer["response"].rstrip("\n") + "\n" == written  # JSON has escapes of its own
    for more in ([], ["--sanitize"]):
        with Terminal(program, [*words, *more, "Hello"]) as terminal:
            assert terminal.wait_for_end() == 0
            shown = terminal.raw.decode().replace("\r\n", "\n")
            assert shown == visible(written)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="needs a user other than root")
def test_a_read_only_file_of_conversations_is_told_once_and_the_chat_goes_on(program: Program) -> None:
    assert program(*DEMO, "--session", "x", "Hello, my name is Ada.").returncode == 0
    data = program.folder / "home" / "data"
    for path in (*data.iterdir(), data):
        path.chmod(path.stat().st_mode & ~0o222)
    powerless = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    with Terminal(program, shell=" ".join([*powerless, *COMMAND, *DEMO])) as terminal:
        terminal.wait("exact · /help")
        assert terminal.text.count("cannot be saved") == 1
        terminal.enter("Hello, my name is Bob.")
        assert "Bob" in terminal.enter("What is my name?")
        assert terminal.text.count("no longer saved") == 1
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
    assert "Bob" not in program("history", "show", "x").stdout


def test_no_save_leaves_no_trace_and_a_full_disk_is_told_once(program: Program) -> None:
    with Terminal(program, [*DEMO, "--no-save"]) as terminal:
        terminal.wait("exact · /help")
        terminal.enter(QUESTION)
        assert "There are no saved conversations yet" in terminal.enter("/sessions")
        assert "not saved" in terminal.enter("/title x")
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
        assert "resume with:" not in terminal.text
    assert not (program.folder / "home" / "data").exists()
    assert program("--no-save", "--session", "x", *DEMO, "Hello!").returncode == 0
    assert not (program.folder / "home" / "data").exists()
    assert program(*DEMO, "--session", "x", "Hello!").returncode == 0
    limited = f"ulimit -f 100; exec {' '.join([*COMMAND, *DEMO])} --session x"
    with Terminal(program, shell=limited) as terminal:
        terminal.wait("exact · /help")
        for _ in range(20):
            terminal.enter("Hello!")
            if "no longer saved" in terminal.text:
                break
        assert "Hello! I am" in terminal.enter("Hello!")
        assert terminal.text.count("no longer saved") == 1
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
    assert "Hello!" in program("history", "show", "x").stdout
