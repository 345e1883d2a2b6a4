"""The interface of all backends: messages in, events out."""

from collections.abc import Callable, Iterator, Sequence
from threading import Event as Cancel
from typing import Protocol

from localgemma_cli.conversation import Message
from localgemma_cli.events import Event
from localgemma_cli.sampling import Sampling
from localgemma_cli.text_score import TextScore


class Backend(Protocol):
    """A model that answers. `name` is its name in `--json`; `note` is shown to the user once."""

    name: str
    note: str | None
    continues: bool  # whether it can continue an answer that the messages end with

    @property
    def context_length(self) -> int | None:
        """In tokens; None where a server does not report it."""
        ...

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """Yield `Reading`, `Thinking` and `Delta` events, then exactly one `Finished`.

        `Finished` also follows where `cancel` is set or a server breaks the connection. Before any delta:
        ContextOverflowError where the messages leave no room for an answer, InterruptedAnswer where `cancel`
        is set before their length is known.
        """
        ...

    def count(self, messages: Sequence[Message]) -> int | None:
        """The prompt's length in tokens; None where only a server could count them."""
        ...

    def recognizes(self, answer: Message) -> bool:
        """Whether the token ids of a saved answer are this model's, and decode to the answer's text."""
        ...

    def prompt(self, messages: Sequence[Message]) -> str | None:
        """The prompt's text, with control tokens; None where a server builds it."""
        ...

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The log-probability of each whole answer: the sum over its tokens, and over what ends it.

        Natural logarithms under the model itself, without temperature and filters. Any token that ends an
        answer ends it here. UsageError where a server cannot report this, ContextOverflowError where a prompt
        and an answer exceed the context.
        """
        ...


class TextBackend(Backend, Protocol):
    """A backend that can read a text with the probabilities of its tokens."""

    def score_text(self, text: str, stride: int, progress: Callable[[int, int], None]) -> TextScore:
        """Score `text` as it is, after `<bos>` where the model has one, in windows of the context.

        Each window adds `stride` tokens, and begins with `<bos>` too. `progress`: tokens done, and all.
        """
        ...
