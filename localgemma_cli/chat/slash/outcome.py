"""What a slash command may ask of the terminal's loop, and what the commands share."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.prompt_text import PromptText
from localgemma_cli.chat.slash import slash_commands as slash
from localgemma_cli.errors import UsageError
from localgemma_cli.sampling import Sampling
from localgemma_cli.sanitize import one_line


@dataclass(frozen=True)
class Ask:
    """A question to be sent now; `sampling` is for it alone."""

    question: PromptText
    sampling: Sampling | None = None


@dataclass(frozen=True)
class Edit:
    """A text for the editor, and then for the prompt."""

    text: str


@dataclass(frozen=True)
class Copy:
    """A text for the clipboard."""

    text: str


@dataclass(frozen=True)
class Do:
    """Something only the terminal's loop can do: continue, summarize, exit, or multiline."""

    what: str


@dataclass(frozen=True)
class Switch:
    """To the model of that name."""

    model: str


Outcome = Ask | Edit | Copy | Do | Switch | None


@dataclass(frozen=True)
class CommandContext:
    """What the commands know that is not in the conversation.

    `loaded` waits for the model and is None where Ctrl-C came first; `ready` does not wait.
    """

    plan: Callable[[], str]
    model: Callable[[], str]
    loaded: Callable[[], Backend | None]
    ready: Callable[[], Backend | None]


def number(command: str, argument: str) -> int:
    if not argument:
        return 1
    if not re.fullmatch(r"0{0,9}[1-9][0-9]{0,5}", argument):
        raise takes(command)
    return int(argument)


def takes(command: str) -> UsageError:
    use = slash.COMMANDS[command]
    alone = "" if use.takes else ", and nothing after it"
    return UsageError(f"Usage: {slash.usage(command)}{alone}", f"{command}: {use.what}.")


def paths(argument: str) -> list[str]:
    """As a shell would split them."""
    if "\0" in argument:
        raise UsageError("No path has a NUL in it.", "Type the path again.")
    try:
        return shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"The paths cannot be read: {error}.", "Put names with blanks in quotes.") from None


def counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= 40 else line[:39] + "…"
