"""The commands of the interactive chat: what a line means, without doing it."""

import difflib
from dataclasses import dataclass

COMMANDS = {
    "/help": "show this list",
    "/new": "forget the conversation and start another; the system text stays",
    "/system": "show the system text; /system TEXT sets it, /system - removes it",
    "/exit": "leave (so do Ctrl-D and quit)",
}

_OLD_SPELLINGS = {
    "!help": "/help",
    "!new session": "/new",
    "!exit": "/exit",
    "quit": "/exit",
    "exit": "/exit",
}


@dataclass(frozen=True)
class Say:
    """A question for the model."""

    text: str


@dataclass(frozen=True)
class Command:
    name: str
    argument: str


@dataclass(frozen=True)
class Unknown:
    name: str
    nearest: str | None


def parse(line: str) -> Say | Command | Unknown | None:
    """None for an empty line; `//text` says a text that begins with a slash."""
    text = line.strip()
    if not text:
        return None
    text = _OLD_SPELLINGS.get(text.lower(), text)
    if text.startswith("//"):
        return Say(text[1:])
    if not text.startswith("/"):
        return Say(text)
    name, _, argument = text.partition(" ")
    if name in COMMANDS:
        return Command(name, argument.strip())
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    return Unknown(name, close[0] if close else None)


def help_text() -> str:
    width = max(map(len, COMMANDS))
    commands = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    keys = [
        "  Enter sends, Alt-Enter starts a new line.",
        "  Ctrl-C stops an answer or clears the line, Ctrl-D leaves.",
        "  //text sends a text that begins with a slash.",
    ]
    return "\n".join(["Commands:", *commands, "Keys:", *keys])
