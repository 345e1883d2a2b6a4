"""Values of a chat: messages, turns, conversations. All frozen; a turn joins whole or not at all."""

from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "interrupted", "error"]


@dataclass(frozen=True)
class Message:
    """`token_ids`: what the model itself wrote, kept so that history is never tokenized again."""

    role: Role
    content: str
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Turn:
    """`saved` is its place in the file of saved conversations, where there is one."""

    question: Message
    answer: Message
    finish_reason: FinishReason
    saved: int | None = None


@dataclass(frozen=True)
class Conversation:
    system: str | None = None
    turns: tuple[Turn, ...] = ()

    def messages(self, question: str) -> tuple[Message, ...]:
        """What a backend is given to answer `question`."""
        head = (Message("system", self.system),) if self.system else ()
        past = tuple(message for turn in self.turns for message in (turn.question, turn.answer))
        return (*head, *past, Message("user", question))

    def with_turn(self, turn: Turn) -> "Conversation":
        return replace(self, turns=(*self.turns, turn))

    def with_saved(self, place: int | None) -> "Conversation":
        """The last turn's place in the file."""
        *past, last = self.turns
        return replace(self, turns=(*past, replace(last, saved=place)))

    def without_oldest(self, count: int = 1) -> "Conversation":
        return replace(self, turns=self.turns[count:])
