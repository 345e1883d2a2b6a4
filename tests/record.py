"""Make the README's pictures from the real program: `python tests/record.py docs`."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text
from support.program import Program
from support.terminal import Terminal

PLAN = "localgemma plan --all --device cuda --device-memory 24GiB"


def first_chat(program: Program) -> Iterator[str]:
    with Terminal(program, ["-m", "demo", "--temperature", "0"]) as terminal:
        for question in ("Hi, I'm Ada.", "What does the memory preset do?", "And what is my name?"):
            terminal.wait("exact · ")
            terminal.wait_for_prompt()
            for letter in question:
                terminal.type(letter)
            terminal.wait(question[:20].replace("?", "."))
            terminal.type("\r")
            terminal.read(0.5)
            terminal.wait_for_prompt()
        yield from coloured(terminal.screen)


def code(program: Program) -> Iterator[str]:
    with Terminal(program, ["-m", "demo", "--temperature", "0"]) as terminal:
        for line in ("How do I use a pipe?", "/stats"):
            terminal.wait("exact · ")
            terminal.wait_for_prompt()
            for letter in line:
                terminal.type(letter)
            terminal.wait(line[:20].replace("?", "."))
            terminal.type("\r")
            terminal.read(0.5)
        terminal.wait("this chat")
        terminal.wait_for_prompt()
        yield from coloured(terminal.screen)


def plan(program: Program) -> Iterator[str]:
    with Terminal(program, PLAN.split()[1:]) as terminal:
        terminal.wait_for_end()
        yield from coloured(terminal.screen)


def pipe(program: Program) -> Iterator[str]:
    lines = (
        'echo "What is the memory preset?" | localgemma -m demo --temperature 0 -',
        'localgemma -m demo --temperature 0 --json "Hello" | cut -c 1-70',
    )
    alias = f'localgemma() {{ {sys.executable} -m localgemma_cli "$@"; }}; '
    shell = alias + "; ".join(f"echo '$ {line}'; {line}" for line in lines)
    with Terminal(program, shell=shell) as terminal:
        terminal.wait_for_end()
        yield from coloured(terminal.screen)


def coloured(screen: pyte.HistoryScreen) -> Iterator[Text]:
    """The lines of a screen with their colours, as rich prints them."""
    for row in range(screen.lines):
        line = Text()
        for column in range(screen.columns):
            char = screen.buffer[row][column]
            line.append(char.data, style(char))
        line.rstrip()
        yield line


def style(char: pyte.screens.Char) -> Style:
    def colour(name: str) -> str | None:
        if name == "default":
            return None
        known = {"brown": "yellow", "brightblack": "bright_black"}
        return (
            f"#{name}"
            if len(name) == 6 and all(c in "0123456789abcdef" for c in name)
            else known.get(name, name)
        )

    return Style(
        color=colour(char.fg),
        bgcolor=colour(char.bg),
        bold=char.bold,
        italic=char.italics,
        reverse=char.reverse,
    )


def main(folder: Path) -> None:
    for title, make in (("first-chat", first_chat), ("code", code), ("plan", plan), ("pipe", pipe)):
        with tempfile.TemporaryDirectory() as home:
            lines = list(make(Program(Path(home))))
        while lines and not lines[-1].plain:
            lines.pop()
        console = Console(record=True, width=80, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
        for line in lines:
            console.print(line, overflow="crop", no_wrap=True)
        console.save_svg(str(folder / f"{title}.svg"), title="localgemma", unique_id=title)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
