"""The seam every answer comes through."""

from collections.abc import Iterator, Sequence
from threading import Event as Cancel
from typing import Protocol

from localgemma_cli.conversation import Message
from localgemma_cli.events import Event
from localgemma_cli.sampling import Sampling


class Backend(Protocol):
    """Something that answers; `name` is what `--json` calls it, `note` what to tell a person of it first."""

    name: str
    note: str | None
    continues: bool  # whether messages that end with an answer are gone on from, from its last word

    @property
    def context_length(self) -> int | None:
        """Tokens; None where a server does not say."""
        ...

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """Thinking, deltas, then exactly one `Finished`, also after `cancel` is set or a server broke off.

        Before the deltas it may tell how far it is, by `Reading`. Raises ContextOverflowError before any
        delta where the messages leave no room for an answer, InterruptedAnswer where `cancel` was set before
        their length was known.
        """
        ...

    def count(self, messages: Sequence[Message]) -> int | None:
        """Tokens of the prompt that `messages` make; None where only a server could say."""
        ...

    def recognizes(self, answer: Message) -> bool:
        """Whether the token ids of a saved answer are this model's, and say what the answer says."""
        ...

    def prompt(self, messages: Sequence[Message]) -> str | None:
        """The prompt as it is sent, control tokens and all; None where a server makes it."""
        ...
