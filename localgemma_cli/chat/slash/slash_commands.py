"""The slash commands: their help, and how a line is parsed."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import fill

from localgemma_cli.chat.prompt_text import PromptText


@dataclass(frozen=True)
class CommandHelp:
    """The help of one command: `argument` as it is typed after the command.

    `choices` if it is one of a few words.
    """

    argument: str
    what: str
    choices: tuple[str, ...] = ()


COMMAND_GROUPS: Mapping[str, Mapping[str, CommandHelp]] = {
    "Conversation": {
        "/new": CommandHelp("", "start a new conversation; the system text stays"),
        "/retry": CommandHelp("[KEY=VALUE ...]", "answer the last question again"),
        "/continue": CommandHelp("", "resume an answer that was cut off"),
        "/edit": CommandHelp("[N]", "edit the last question, or the one N turns back"),
        "/undo": CommandHelp("[N]", "remove the last N turns"),
        "/fork": CommandHelp("", "continue in a copy; the original is unchanged"),
        "/summarize": CommandHelp("", "replace older turns with a summary"),
        "/system": CommandHelp("[TEXT]", "show or set the system text; - removes it"),
    },
    "Files and saved conversations": {
        "/file": CommandHelp("PATH ...", "attach files, like @PATH; - removes them"),
        "/copy": CommandHelp("[N]", "copy the last answer, or the one N turns back"),
        "/export": CommandHelp("FILE", "write a .md, .json or .jsonl file"),
        "/save": CommandHelp("[NAME]", "name this conversation; with --no-save, save it"),
        "/title": CommandHelp("TEXT", "set the title of this conversation"),
        "/sessions": CommandHelp("[QUERY]", "list saved conversations, or search them"),
        "/load": CommandHelp("NAME", "resume a saved one, by name or number"),
    },
    "Model and settings": {
        "/model": CommandHelp("[NAME]", "show the model, or switch to another"),
        "/set": CommandHelp("[KEY VALUE]", "set sampling, or render plain|markdown"),
        "/show": CommandHelp(
            "WHAT",
            "show plan, prompt, context, model or params",
            ("plan", "prompt", "context", "model", "params"),
        ),
        "/stats": CommandHelp("", "show tokens and speed"),
        "/multiline": CommandHelp("", "swap Enter and Alt-Enter"),
        "/help": CommandHelp("", "show this list"),
        "/exit": CommandHelp("", "leave (also Ctrl-D or quit)"),
    },
}
COMMANDS: Mapping[str, CommandHelp] = {
    name: about for group in COMMAND_GROUPS.values() for name, about in group.items()
}

_NARROW = 74  # columns
_KEYS: dict[str, str] = {
    "Enter": 'send; inside """, start a new line',
    "Alt-Enter, Ctrl-J": "start a new line",
    "Ctrl-C": "stop an answer, clear the line",
    "Ctrl-D": "leave",
    "Ctrl-R": "search the input history",
    "Tab": "complete commands and paths",
    "Ctrl-X Ctrl-E": "edit in your editor, then send",
    "@PATH": "attach a file",
    "//text": "send text that begins with /",
}
RENDERS = ("markdown", "plain")
_QUOTES = '"""'
_LONGEST_NAME = 40  # characters of a mistyped command
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
class Question:
    """A message for the model."""

    text: PromptText


@dataclass(frozen=True)
class Command:
    name: str
    argument: str


@dataclass(frozen=True)
class UnknownCommand:
    """A line that looks like a command; `long` if it is more than one word, so worth keeping."""

    name: str
    nearest: str | None
    long: bool


def parse(line: PromptText) -> Question | Command | UnknownCommand | None:
    """What a line means; None if it is empty. `//text` sends `/text`, three quotes enclose a block.

    Only typed characters count: pasted text is never a command.
    """
    line = line.strip()
    if not line.text.strip():
        return None
    if _is_block(line):
        inner = line.slice(3, len(line.text) - 3).strip("\n")
        return Question(inner) if inner.text.strip() else None
    text = line.text
    if not line.pasted:
        text = _OTHER_NAMES.get(text.lower(), text)
    name, *rest = text.split(maxsplit=1)
    if not text.startswith("/") or not line.is_typed(0, len(name) if name[:2] != "//" else 2):
        return Question(line)
    if name.startswith("//"):
        return Question(line.slice(1, len(text)))
    name = _OTHER_NAMES.get(name, name)
    if name in COMMANDS:
        return Command(name, rest[0].strip() if rest else "")
    a_word = name[1:].isalpha() and len(name) <= _LONGEST_NAME
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5) if a_word else []
    return UnknownCommand(name, close[0] if close else None, long=bool(rest) or not a_word)


def opens_block(line: PromptText) -> bool:
    """Whether the line begins a block of three quotes and does not end it."""
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
    """A command with its argument."""
    return f"{name} {COMMANDS[name].argument}".rstrip()


def help_text(columns: int) -> str:
    """All commands and keys in groups; in a narrow terminal each description is below its command."""
    groups = {
        **{
            heading: {usage(name): about.what for name, about in group.items()}
            for heading, group in COMMAND_GROUPS.items()
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
