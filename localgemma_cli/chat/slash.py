"""The commands of the interactive chat: what a line means, without doing it."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from localgemma_cli.chat.pasted import Line


@dataclass(frozen=True)
class Usage:
    """`takes` as it is typed after the command, `choices` where that is one of a few words."""

    takes: str
    what: str
    choices: tuple[str, ...] = ()


COMMANDS: Mapping[str, Usage] = {
    "/help": Usage("", "show this list"),
    "/new": Usage("", "begin another conversation; the system text stays"),
    "/system": Usage("[TEXT]", "show the system text or set it; - removes it"),
    "/retry": Usage("[KEY=VALUE ...]", "answer the last question again, perhaps otherwise"),
    "/undo": Usage("[N]", "take back the last N turns"),
    "/edit": Usage("[N]", "edit your last question, or that N turns back"),
    "/continue": Usage("", "go on with an answer that was interrupted or cut off"),
    "/fork": Usage("", "go on in a copy; the conversation so far stays"),
    "/file": Usage("PATH ...", "attach files, as @PATH in a message does; - for none"),
    "/show": Usage(
        "WHAT",
        "show the plan, prompt, context, model or params",
        ("plan", "prompt", "context", "model", "params"),
    ),
    "/set": Usage("[KEY VALUE]", "how answers are sampled, or render plain|markdown"),
    "/stats": Usage("", "tokens and speed, of the last answer and the chat"),
    "/copy": Usage("[N]", "copy the last answer, or that N turns back"),
    "/summarize": Usage("", "put a summary in the place of the older turns"),
    "/save": Usage("[NAME]", "name the conversation; after --no-save, save it"),
    "/title": Usage("TEXT", "give this conversation a title"),
    "/sessions": Usage("[QUERY]", "the saved conversations, or those with these words"),
    "/load": Usage("NAME", "go on with a saved conversation, by name or number"),
    "/export": Usage("FILE", "write the conversation to a .md, .json or .jsonl"),
    "/multiline": Usage("", "let Enter begin a line and Alt-Enter send, or back"),
    "/exit": Usage("", "leave (so do Ctrl-D and quit)"),
}

RENDERS = ("markdown", "plain")
_QUOTES = '"""'
_LONGEST_NAME = 40  # characters that are compared with the commands
_OTHER_NAMES = {
    "!help": "/help",
    "!new session": "/new",
    "!exit": "/exit",
    "/quit": "/exit",
    "/bye": "/exit",
    "/?": "/help",
    "/h": "/help",
    "/clear": "/new",
    "/history": "/sessions",
    "quit": "/exit",
    "exit": "/exit",
}


@dataclass(frozen=True)
class Say:
    """A question for the model."""

    question: Line


@dataclass(frozen=True)
class Command:
    name: str
    argument: str


@dataclass(frozen=True)
class Unknown:
    """No command. Where it is `long`, there is more to it than a word that is soon typed again."""

    name: str
    nearest: str | None
    long: bool


def parse(line: Line) -> Say | Command | Unknown | None:
    """None for an empty line; `//text` says a text that begins with a slash, three quotes hold a block.

    All of that only where it was typed: what was pasted is text.
    """
    line = line.stripped()
    if not line.text.strip():
        return None
    if _is_block(line):
        inner = line.part(3, len(line.text) - 3).stripped("\n")
        return Say(inner) if inner.text.strip() else None
    text = line.text
    if not line.pasted:
        text = _OTHER_NAMES.get(text.lower(), text)
    name, *rest = text.split(maxsplit=1)
    if not text.startswith("/") or not line.typed(0, len(name) if name[:2] != "//" else 2):
        return Say(line)
    if name.startswith("//"):
        return Say(line.part(1, len(text)))
    name = _OTHER_NAMES.get(name, name)
    if name in COMMANDS:
        return Command(name, rest[0].strip() if rest else "")
    close = difflib.get_close_matches(name[:_LONGEST_NAME], COMMANDS, n=1, cutoff=0.5)
    alone = not rest and name[1:].isalpha()
    return Unknown(name, close[0] if close else None, long=not alone)


def opens_block(line: Line) -> bool:
    """Whether three quotes were typed, and not yet the three that end the block."""
    line = line.stripped()
    return line.text.startswith(_QUOTES) and line.typed(0, 3) and not _is_block(line)


def _is_block(line: Line) -> bool:
    text, end = line.text, len(line.text)
    return (
        end >= 6
        and text.startswith(_QUOTES)
        and text.endswith(_QUOTES)
        and line.typed(0, 3)
        and line.typed(end - 3, end)
    )


def usage(name: str) -> str:
    return f"{name} {COMMANDS[name].takes}".rstrip()


def help_text() -> str:
    width = max(len(usage(name)) for name in COMMANDS)
    commands = [f"  {usage(name):<{width}}  {each.what}" for name, each in COMMANDS.items()]
    keys = [
        '  Enter sends. Alt-Enter and Ctrl-J start a new line; Enter too, within """.',
        "  Ctrl-C stops an answer or clears the line. Ctrl-D leaves.",
        "  Ctrl-R searches what you typed before. Tab completes commands and paths.",
        "  Ctrl-X Ctrl-E opens your editor and sends what you save.",
        "  //text sends a text that begins with a slash, @PATH attaches a file.",
    ]
    return "\n".join(["Commands:", *commands, "Keys:", *keys])
