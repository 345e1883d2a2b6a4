"""The commands of the interactive chat: what a line means, without doing it."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import fill

from localgemma_cli.chat.prompt_text import PromptText


@dataclass(frozen=True)
class Usage:
    """`takes` as it is typed after the command, `choices` where that is one of a few words."""

    takes: str
    what: str
    choices: tuple[str, ...] = ()


GROUPS: Mapping[str, Mapping[str, Usage]] = {
    "The conversation": {
        "/new": Usage("", "begin another; the system text stays"),
        "/retry": Usage("[KEY=VALUE ...]", "answer the last question again"),
        "/continue": Usage("", "resume an answer that was cut off"),
        "/edit": Usage("[N]", "edit your last question, or that N turns back"),
        "/undo": Usage("[N]", "take back the last N turns"),
        "/fork": Usage("", "go on in a copy; this one stays as it is"),
        "/summarize": Usage("", "put a summary in the place of older turns"),
        "/system": Usage("[TEXT]", "show or set the system text; - removes it"),
    },
    "Files and saved conversations": {
        "/file": Usage("PATH ...", "attach files, as @PATH does; - for none"),
        "/copy": Usage("[N]", "copy the last answer, or that N turns back"),
        "/export": Usage("FILE", "write a .md, .json or .jsonl file"),
        "/save": Usage("[NAME]", "name it; after --no-save, save it"),
        "/title": Usage("TEXT", "give this conversation a title"),
        "/sessions": Usage("[QUERY]", "list what is saved, or what has these words"),
        "/load": Usage("NAME", "resume one, by name or number"),
    },
    "Model and settings": {
        "/model": Usage("[NAME]", "show who answers, or switch to another"),
        "/set": Usage("[KEY VALUE]", "sampling, or render plain|markdown"),
        "/show": Usage(
            "WHAT",
            "plan, prompt, context, model or params",
            ("plan", "prompt", "context", "model", "params"),
        ),
        "/stats": Usage("", "tokens and speed so far"),
        "/multiline": Usage("", "swap what Enter and Alt-Enter do"),
        "/help": Usage("", "show this list"),
        "/exit": Usage("", "leave (so do Ctrl-D and quit)"),
    },
}
COMMANDS: Mapping[str, Usage] = {name: use for group in GROUPS.values() for name, use in group.items()}

_NARROW = 70  # columns
_KEYS: dict[str, str] = {
    "Enter": 'send; in an open """, a new line',
    "Alt-Enter, Ctrl-J": "a new line",
    "Ctrl-C": "stop an answer, clear the line",
    "Ctrl-D": "leave",
    "Ctrl-R": "search what you typed before",
    "Tab": "complete commands and paths",
    "Ctrl-X Ctrl-E": "open your editor, then send",
    "@PATH": "attach a file",
    "//text": "send a text that begins with /",
}
RENDERS = ("markdown", "plain")
_QUOTES = '"""'
_LONGEST_NAME = 40  # characters that could have been meant for a command
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

    question: PromptText


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


def parse(line: PromptText) -> Say | Command | Unknown | None:
    """None for an empty line; `//text` says a text that begins with a slash, three quotes hold a block.

    All of that only where it was typed: what was pasted is text.
    """
    line = line.strip()
    if not line.text.strip():
        return None
    if _is_block(line):
        inner = line.slice(3, len(line.text) - 3).strip("\n")
        return Say(inner) if inner.text.strip() else None
    text = line.text
    if not line.pasted:
        text = _OTHER_NAMES.get(text.lower(), text)
    name, *rest = text.split(maxsplit=1)
    if not text.startswith("/") or not line.is_typed(0, len(name) if name[:2] != "//" else 2):
        return Say(line)
    if name.startswith("//"):
        return Say(line.slice(1, len(text)))
    name = _OTHER_NAMES.get(name, name)
    if name in COMMANDS:
        return Command(name, rest[0].strip() if rest else "")
    a_word = name[1:].isalpha() and len(name) <= _LONGEST_NAME
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5) if a_word else []
    return Unknown(name, close[0] if close else None, long=bool(rest) or not a_word)


def opens_block(line: PromptText) -> bool:
    """Whether three quotes were typed, and not yet the three that end the block."""
    line = line.strip()
    return line.text.startswith(_QUOTES) and line.is_typed(0, 3) and not _is_block(line)


def _is_block(line: PromptText) -> bool:
    text, end = line.text, len(line.text)
    return (
        end >= 6
        and text.startswith(_QUOTES)
        and text.endswith(_QUOTES)
        and line.is_typed(0, 3)
        and line.is_typed(end - 3, end)
    )


def usage(name: str) -> str:
    return f"{name} {COMMANDS[name].takes}".rstrip()


def help_text(columns: int) -> str:
    """In groups; where the terminal is narrow, what each does stands below it."""
    groups = {
        **{
            heading: {usage(name): use.what for name, use in group.items()}
            for heading, group in GROUPS.items()
        },
        "Keys": _KEYS,
    }
    width = max(len(name) for group in groups.values() for name in group)
    lines = ["Commands:"]
    for heading, group in groups.items():
        lines.append(f"\n{heading}")
        for name, what in group.items():
            if columns > _NARROW:
                lines.append(f"  {name:<{width}}  {what}")
            else:
                lines += [f"  {name}", fill(what, columns, initial_indent="    ", subsequent_indent="    ")]
    return "\n".join(lines)
