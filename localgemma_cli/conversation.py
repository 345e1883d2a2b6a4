"""Messages, turns and conversations, all frozen. A turn joins a conversation complete or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "interrupted", "error"]


@dataclass(frozen=True)
class Message:
    """One message; one of the role "text" has no others beside it, and is continued without a template.

    `token_ids` are the ids that the model generated, kept so that history is never tokenized again.
    """

    role: Role | Literal["text"]
    content: str
    token_ids: tuple[int, ...] | None = None

    def __add__(self, more: "Message") -> "Message":
        """The message continued by `more`; its ids are known if both parts have theirs."""
        known = self.token_ids is not None and more.token_ids is not None
        ids = (self.token_ids or ()) + (more.token_ids or ()) if known else None
        return replace(self, content=self.content + more.content, token_ids=ids)


def fold_system(messages: Sequence[Message]) -> Sequence[Message]:
    """Put the system text at the start of the first user message, for models without a system role."""
    if len(messages) < 2 or messages[0].role != "system":
        return messages
    system, first, *rest = messages
    return [Message("user", f"{system.content.strip()}\n\n{first.content.strip()}"), *rest]


@dataclass(frozen=True)
class Turn:
    """A question and its answer; `saved` is its id in the saved conversations, if it is saved."""

    question: Message
    answer: Message
    finish_reason: FinishReason
    saved: int | None = None


@dataclass(frozen=True)
class Conversation:
    """A system text and turns; `title` is None unless the user has set one."""

    system: str | None = None
    turns: tuple[Turn, ...] = ()
    title: str | None = None

    def messages(self, question: str) -> tuple[Message, ...]:
        """All messages for a backend, with `question` as the last one."""
        head = (Message("system", self.system),) if self.system else ()
        past = tuple(message for turn in self.turns for message in (turn.question, turn.answer))
        return (*head, *past, Message("user", question))

    def without_ids(self) -> "Conversation":
        """The conversation as text only, for a different model."""
        turns = (replace(turn, answer=replace(turn.answer, token_ids=None)) for turn in self.turns)
        return replace(self, turns=tuple(turns))

    def with_turn(self, turn: Turn) -> "Conversation":
        return replace(self, turns=(*self.turns, turn))

    def with_saved_ids(self, places: Sequence[int | None]) -> "Conversation":
        """Set the saved ids of the last turns."""
        first = len(self.turns) - len(places)
        placed = (replace(turn, saved=at) for turn, at in zip(self.turns[first:], places, strict=True))
        return replace(self, turns=(*self.turns[:first], *placed))

    def without_last(self, count: int) -> "Conversation":
        return replace(self, turns=self.turns[: len(self.turns) - count])

    def without_oldest(self, count: int = 1) -> "Conversation":
        return replace(self, turns=self.turns[count:])
