"""What a slash command asks the terminal's loop to do next, and what it can use from there."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.prompt_text import PromptText
from localgemma_cli.sampling import Sampling


@dataclass(frozen=True)
class AskQuestion:
    """Send this question now; `sampling` applies to it alone."""

    question: PromptText
    sampling: Sampling | None = None


@dataclass(frozen=True)
class EditText:
    """Open this text in the editor, or put it at the prompt."""

    text: str


@dataclass(frozen=True)
class CopyText:
    """Copy this text to the clipboard."""

    text: str


@dataclass(frozen=True)
class SwitchModel:
    """Load the model of this name."""

    name: str


class LoopAction(Enum):
    """Something that only the loop can do."""

    CONTINUE = auto()
    SUMMARIZE = auto()
    SWAP_ENTER = auto()
    EXIT = auto()


Outcome = AskQuestion | EditText | CopyText | SwitchModel | LoopAction | None


@dataclass(frozen=True)
class CommandContext:
    """What a command can use besides the conversation.

    `wait_for_backend` returns None if Ctrl-C comes first; `ready_backend` returns None if none is loaded yet.
    """

    plan: Callable[[], str]
    model: Callable[[], str]
    wait_for_backend: Callable[[], Backend | None]
    ready_backend: Callable[[], Backend | None]
