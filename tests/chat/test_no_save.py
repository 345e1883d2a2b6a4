"""`--no-save`: the disk is searched, byte by byte, for what was said."""

import os
import signal
from pathlib import Path

from support.program import COMMAND, Program
from support.terminal import Terminal, paste

from localgemma_cli.conversation import Message, Turn
from localgemma_cli.sessions.store import Store

WORD = "xyzzy"  # in everything that is said; the program gives it back in lower case, or not at all
CHAT = ["-m", "demo", "--temperature", "0", "--max-new-tokens", "8", "--no-save"]


def others(program: Program) -> Path:
    """A file of conversations that another chat has saved."""
    path = program.folder / "home" / "data" / "conversations.sqlite"
    store = Store(path)
    session = store.create("Be kind.", name="taken")
    store.add(session, Turn(Message("user", "Hi"), Message("assistant", "Hello."), "stop"), "demo")
    store.close()
    return path


def traces(folder: Path, *allowed: Path) -> list[str]:
    """Every file below with the word in it, by name or by content, in any form that SQLite may give it."""
    found = []
    for path in folder.rglob("*"):
        held = path.read_bytes().lower() if path.is_file() and path not in allowed else b""
        if WORD in path.name or any(WORD.encode(code) in held for code in ("utf-8", "utf-16-le")):
            found.append(str(path))
    return found


def private(program: Program) -> Program:
    """With a temporary folder of its own, so that this is searched as well."""
    (program.folder / "tmp").mkdir()
    return program.with_environment(TMPDIR=str(program.folder / "tmp"), EDITOR="", VISUAL="")


def test_no_command_writes_a_word_of_it(program: Program) -> None:
    path = others(program)
    note = program.folder / "note.txt"
    note.write_text(f"{WORD} of the file\n")
    out = program.folder / "out.md"
    program = private(program)
    with Terminal(program, [*CHAT, "-f", "note.txt", "-s", f"{WORD} of the system text"]) as terminal:
        terminal.wait("exact · /help")
        enter = terminal.enter
        enter(f"{WORD} one")
        assert "Another conversation has that name" in enter("/save taken")
        for line in (
            f"{WORD} two @note.txt",
            "/save taken",
            "/retry",
            "/fork",
            f"/title {WORD}",
            f"/system {WORD}",
            "/file note.txt",
            f"/undo {WORD}",
            "/summarize",
            f"{WORD} three",
            "/export out.md",
            f"/export {program.folder}/nowhere/{WORD}.md",
            "/load taken",
            f"{WORD} four",
            "/undo",
            "/new",
            f"{WORD} five",
        ):
            enter(line)
        terminal.type("/edit\r")
        terminal.wait(r"empty one to cancel\]\n> xyzzy five")
        terminal.type("\x15/exit\r")
        assert terminal.wait_for_end() == 0
        assert "[saved" not in terminal.text
    assert out.read_text().count(WORD) > 2
    assert traces(program.folder, note, out) == []
    store = Store(path)
    assert [each.turns for each in store.summaries()] == [1]
    store.close()


def test_no_end_of_the_program_writes_a_word_of_it(program: Program) -> None:
    others(program)
    program = private(program)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with Terminal(program, [*CHAT[:-3], "--max-new-tokens", "900", "--no-save"]) as terminal:
            terminal.wait("exact · /help")
            terminal.enter("/set max-new-tokens 5")
            terminal.enter(f"{WORD} one")
            terminal.enter("/save taken")
            terminal.enter("/set temperature 20")
            terminal.enter("/set max-new-tokens 900")
            terminal.type(f"{WORD} two\r")
            terminal.wait(rf"> {WORD} two\n.*\S")
            os.kill(terminal.child.pid, number)
            terminal.wait_for_end()
        assert traces(program.folder) == []


def test_a_save_that_the_disk_has_no_room_for_leaves_nothing(program: Program) -> None:
    path = others(program)
    program = private(program)
    limited = f"ulimit -f {path.stat().st_size // 1024 + 4}; exec {' '.join([*COMMAND, *CHAT])}"
    with Terminal(program, shell=limited) as terminal:
        terminal.wait("exact · /help")
        terminal.enter(f"{WORD} one")
        terminal.enter(f"/system {paste(f'{WORD} ' * 40_000)}")
        assert "cannot be used" in terminal.enter("/save mine")
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
    assert traces(program.folder) == []
