"""Every slash command, typed into the real program."""

import base64
import json
import re
from pathlib import Path

import pytest
from support.program import Program
from support.terminal import Terminal, paste

from localgemma_cli.chat.prompt_text import as_pasted
from localgemma_cli.chat.slash.slash_commands import COMMANDS, Question, parse, usage

EVIL = "evil\x1b[31m\u202e.txt"
DEMO = ["-m", "demo", "--temperature", "0"]
QUESTION = "What does the memory preset do?"


@pytest.mark.parametrize("text", ["Hello", "/undo", "//x", "quit", '"""', "!exit", "a\nb", "/", "exit"])
def test_a_text_can_be_edited_and_is_still_text(text: str) -> None:
    assert parse(as_pasted(text)) == Question(as_pasted(text))


def test_conversation_commands(program: Program) -> None:
    editor = program.folder / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's/9b/2b/; s/$/ please/' \"$1\"\n")
    editor.chmod(0o700)
    with Terminal(program.with_environment(EDITOR=str(editor), VISUAL=""), DEMO) as terminal:
        terminal.wait("exact · /help")
        enter = terminal.enter
        text = enter("/help")
        assert all(usage(name) in terminal.text for name in COMMANDS)
        assert "Did you mean /undo" in enter("/udno")
        assert "Usage: /undo [N]" in enter("/undo lots")
        assert "Usage: /exit (no argument)" in enter("/exit to where")
        for line in ("/continue", "/retry", "/edit", "/undo", "/copy"):
            assert "The conversation is empty" in enter(line)
        assert "too little to summarize" in enter("/summarize")
        assert "There are no answers yet" in enter("/stats")
        enter("//undo")
        assert "/undo" in enter("/show prompt")
        enter("/new")
        assert "/undo" not in enter("/show prompt")
        assert "no system text" in enter("/system")
        assert "System text: Answer in capital" in enter("/system Answer in capital letters.")
        shouted = enter("What is 9b?").split("\n", 1)[1]
        assert shouted.upper() == shouted
        assert "no system text" in enter("/system -")
        answer = enter(QUESTION)
        prompt, cached = map(int, re.findall(r"prompt: (\d+) tokens,\s+(\d+) cached", enter("/stats"))[0])
        assert cached < prompt - 1  # without the system text the prompt begins differently
        assert "last answer is complete" in enter("/continue")
        again = enter("/retry seed=4")
        assert again.split("\n")[1:] == answer.split("\n")[1:]
        text = enter("/stats")
        assert f"{prompt - 1} cached and 1 read" in text
        assert "this chat: 4 answers" in text
        assert "Usage: /retry [KEY=VALUE ...]" in enter("/retry warmer")
        assert "\ntop-p must be between" in enter("/retry top_p=7")  # no option
        text = enter("/set temperature=0.25") + enter("/set top_k 7") + enter("/set top_k off")
        assert "temperature        0.25" in text
        assert re.search(r"top_k +7[\s\S]*top_k +off", text)
        assert "Usage: /set [KEY VALUE]" in enter("/set colour red")
        assert "render             plain" in enter("/set render plain")
        assert "temperature        0.25" in enter("/show params")
        assert "demo" in enter("/show model")
        shown = re.sub(r"\n  ", " ", enter("/show plan"))  # words are whole
        assert (
            "no quantization, native precision and the reference's attention, for the reference's tokens"
            in shown
        )
        assert re.search(r"1\. What is 9b\? +\d+ +█+\n2\. What does[\s\S]*free", enter("/show context"))
        assert "Usage: /show WHAT" in enter("/show off")
        assert "removed 2 turns, from “What is 9b?”" in enter("/undo 2")
        assert "this chat: 4 answers" in enter("/stats")
        enter("What is 9b?")
        terminal.type("/edit\r")
        terminal.wait(r"> What is 2b\? please")
        terminal.type("\r")
        terminal.wait_for_prompt()
        text = enter("/show prompt")
        assert "What is 2b? please" in text
        assert "9b" not in text
        assert "[Enter starts a new line, Alt-Enter sends]" in enter("/multiline")
        terminal.type("/multiline\x1b\r")
        terminal.wait(r"\[Enter sends\]")
        terminal.wait_for_prompt()
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0


def test_commands_about_files(program: Program) -> None:
    (program.folder / "notes.txt").write_text("The colour is green.\n")
    (program.folder / EVIL).write_text("x")
    with Terminal(program, [*DEMO, "-f", "notes.txt"]) as terminal:
        terminal.wait("1 attached")
        terminal.wait("exact · /help")
        enter = terminal.enter
        assert re.search(r"\[with notes.txt: \d+ tokens\]", enter("Hello!"))
        assert "File notes.txt:" in enter("/show prompt")
        assert "Usage: /file PATH" in enter("/file")
        for path, error in (
            ("/dev/zero", "not a regular file"),
            (".", "is a folder"),
            ("gone", "No such file"),
        ):
            assert error in enter(f"/file {path}")
        assert re.search(r"evil␛\[31m<U\+202E>.txt, \d+ tokens", enter(f"/file {paste(EVIL)}"))
        assert "[attachments removed]" in enter("/file -")
        enter(QUESTION)
        terminal.raw = b""
        assert "if your terminal allows" in enter("/copy")
        copied = re.search(rb"\x1b\]52;c;([A-Za-z0-9+/=]+)\x07", terminal.raw)
        assert copied
        enter("/export out.json")
        enter("/export 'with blanks.md'")
        messages = json.loads((program.folder / "out.json").read_text())["messages"]
        assert base64.b64decode(copied[1]).decode() == messages[-1]["content"]
        assert (program.folder / "with blanks.md").stat().st_mode & 0o777 == 0o600
        assert "already exists" in enter("/export out.json")
        assert "Usage: /export FILE" in enter("/export")
        assert "no extension of a supported format" in enter("/export out.txt")
        assert "[title: ␛[31mEvil <U+202E>title]" in enter("/title " + paste("\x1b[31mEvil \u202etitle"))
        assert "Usage: /title TEXT" in enter("/title")
        assert "saved as my rivers" in enter("/save my rivers")
        assert "copied to conversation 2; 1 is unchanged" in enter("/fork")
        assert "Another conversation has that name" in enter("/save my rivers")
        enter("/undo")
        text = enter("/sessions")
        assert re.search(r"\*   2 .*1 turn ", text)
        assert re.search(r"  1 .*2 turns  my rivers: ␛\[31mEvil <U\+202E>title", text)
        assert "my rivers" in enter("/sessions memory preset")
        assert "No saved conversation" in enter("/sessions unheard-of")
        text = enter("/load my rivers")
        assert "[resumed conversation 1, 2 turns]" in text
        assert messages[-1]["content"].split()[0] in text
        assert "Usage: /load NAME" in enter("/load")
        assert "Saved conversation not found: 'x'" in enter("/load x")
        enter("What is 9b?")
        assert "summarized; they stay saved" in enter("/summarize")
        assert re.search(r"\*   3 .*2 turns", enter("/sessions"))
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
        assert b"\x1b]0" not in terminal.raw
        assert "\u202e" not in terminal.text
    shown = program("history", "list").stdout
    assert len(shown.splitlines()) == 3
    assert Path(program.folder / "home" / "data" / "conversations.sqlite").stat().st_mode & 0o777 == 0o600
