"""What is typed and pasted at the prompt, in the real program."""

import re
import threading
from dataclasses import replace

from support.program import HELD, Program
from support.terminal import Terminal, answer_to, paste

DEMO = ["-m", "demo", "--temperature", "0"]
# slow, and does not end by itself before the context is full
RAMBLING = ["-m", "demo", "--dtype", "float32", "--temperature", "20", "--seed", "3"]
PAGE = "\n".join(f"line {number} of the page" for number in range(2000))
TOO_LONG = r"the context of 1024"  # what the model says to a message of 2,000 lines, and says once


def history(program: Program) -> list[str]:
    text = (program.folder / "home" / "data" / "input-history").read_text()
    entries = re.split(r"\n# .*\n", text)[1:]
    return ["\n".join(line[1:] for line in entry.rstrip("\n").split("\n")) for entry in entries]


def test_a_pasted_book_is_one_message_in_every_state(program: Program) -> None:
    with Terminal(replace(program, cold=True), RAMBLING) as terminal:
        terminal.wait_for_prompt()
        terminal.type(paste(PAGE))  # while it loads
        terminal.wait("line 1999 of the page")
        terminal.type("\r")
        terminal.wait(TOO_LONG)
        terminal.wait("line 1999 of the page", count=2)  # there to edit
        terminal.type("\x03")
        terminal.wait_for_prompt()
        terminal.type("Hello\r")
        terminal.wait(answer_to("Hello"))
        sender = threading.Thread(target=terminal.type, args=(paste(PAGE.replace("line", "row")),))
        sender.start()  # a terminal's buffer holds less than a book
        terminal.wait("row 1999 of the page")
        sender.join()
        terminal.type("\r")
        terminal.wait(TOO_LONG, count=2)
        terminal.type("\x03\x04")
        assert terminal.wait_for_end() == 0
    assert history(program) == [PAGE, "Hello", PAGE.replace("line", "row")]
    assert (program.folder / "home" / "data" / "input-history").stat().st_mode & 0o777 == 0o600


def test_a_long_paste_during_an_answer_is_kept_and_holds_no_ctrl_c_up(program: Program) -> None:
    """A terminal itself takes 4 KB, and a Ctrl-C behind more than that would come after the answer."""
    with Terminal(replace(program, before=HELD), RAMBLING) as terminal:
        terminal.wait("exact · /help")
        terminal.type("Hello\r")
        terminal.wait(answer_to("Hello"))
        terminal.type(f"{paste(PAGE[:30_000])}\x03 and more")
        terminal.wait(r"\[interrupted")
        terminal.wait("and more")
        terminal.type("\r")
        terminal.wait(TOO_LONG)
        terminal.type("\x03")
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
    assert history(program) == ["Hello", f"{PAGE[:30_000]} and more"]


def test_lines_blocks_search_and_the_editor(program: Program) -> None:
    editor = program.folder / "editor"
    editor.write_text("#!/bin/sh\necho 'from the editor' >> \"$1\"\n")
    editor.chmod(0o700)
    program = program.with_environment(EDITOR=str(editor), VISUAL="")
    with Terminal(program, DEMO) as terminal:
        terminal.wait("exact · /help")
        terminal.type("one\x1b\rtwo\x0athree")
        terminal.wait(r"> one\n  two\n  three")
        terminal.enter("")
        terminal.type('"""\r')
        terminal.type("four\rfive\r")
        terminal.wait(r'> """\n  four\n  five')
        terminal.enter('"""')
        terminal.enter("/multiline")
        terminal.type("six\rseven")
        terminal.wait(r"> six\n  seven")
        terminal.type("\x1b\r")
        terminal.wait(r"seven\n.*\S")
        terminal.wait_for_prompt()
        text = terminal.enter("/show prompt\x1b").replace("\n", " ")
        assert all(each in text for each in ("one two three<", "four five<", "six seven<"))
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
    with Terminal(program, DEMO) as terminal:  # another run
        terminal.wait("exact · /help")
        terminal.type("\x12one")
        terminal.wait(r"one\n.*two\n.*three")
        terminal.type("\x03")
        terminal.wait_for_prompt()
        terminal.type("\x12four")
        terminal.wait("five")
        terminal.type("\r\x18\x05")
        terminal.wait(r'"""from the editor\n.*\S')  # sent, as a shell does
        terminal.wait_for_prompt()
        terminal.type("caf\udce9 \udcff\r".encode("utf-8", "surrogateescape"))  # no UTF-8
        terminal.wait(r"caf.*\n.*\S")
        terminal.wait_for_prompt()
        assert "caf\ufffd \ufffd" in terminal.enter("/show prompt")
    assert history(program)[:2] == ["one\ntwo\nthree", '"""\nfour\nfive\n"""']


def test_completion_on_tab_and_by_itself(program: Program) -> None:
    (program.folder / "rivers notes.txt").write_text("x")
    (program.folder / "rocks.txt").write_text("x")
    with Terminal(program, DEMO) as terminal:
        terminal.wait("exact · /help")
        for typed, completed in (
            ("/summ", "/summarize"),
            ("/set rep", "/set repetition_penalty"),
            ("/set render ma", "/set render markdown"),
            ("/retry temp", "/retry temperature="),
            ("/show con", "/show context"),
            ("/file roc", "/file rocks.txt"),
            ("/file riv", '/file "rivers notes.txt"'),
            ("See @roc", "See @rocks.txt"),
        ):
            terminal.type(typed)
            offered = completed.split(" ")[-1].strip('@"')
            terminal.wait(rf"> {typed}\n +.*{re.escape(offered)}")  # without Tab
            terminal.type("\t")
            terminal.wait(rf"> {re.escape(completed)}\n")
            terminal.type("\x03")
            terminal.wait_for_prompt()
        terminal.enter("Hello!")
        terminal.enter("/save riverside")
        terminal.type("/load riv")
        terminal.wait(r"> /load riv\n +riverside")
        terminal.type("\t")
        terminal.wait("> /load riverside")


def test_vi_mode_from_the_config_file(program: Program) -> None:
    (program.config / "config.toml").write_text('vi = true\nmodel = "demo"\n')
    with Terminal(program) as terminal:
        terminal.wait("exact · insert · /help")
        terminal.type("/hexp\x1b")
        terminal.wait("exact · normal · /help")
        terminal.type("hrl")
        terminal.wait("> /help")
        terminal.type("\r")
        terminal.wait("Commands:")


def test_an_edit_can_be_called_off(program: Program) -> None:
    with Terminal(program.with_environment(EDITOR="", VISUAL=""), DEMO) as terminal:
        terminal.wait("exact · /help")
        terminal.enter("What is 9b?")
        for call_off in ("\x03", "\x15\r"):
            terminal.type("/edit\r")
            terminal.wait(r"empty one to cancel\][\s\S]*> What is 9b\?")
            terminal.type(call_off)
            terminal.wait_for_prompt()
        terminal.enter("Hello!")
        assert "2. Hello!" in terminal.enter("/show context")
        terminal.wait(r"\d+/1024 tokens · [\d.]+ tok/s")
