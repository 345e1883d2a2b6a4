"""`/show context`: what fills the context, and how much is free."""

from collections.abc import Iterator

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.chat_session import ChatSession
from localgemma_cli.conversation import Message
from localgemma_cli.sanitize import one_line

_BAR = 30  # columns
_QUESTION = 36  # columns


def format_context(session: ChatSession, backend: Backend) -> str:
    """A line with a bar for the system text, for each turn, and for the free tokens."""
    parts = list(_parts(session, backend))
    if any(tokens is None for _, tokens in parts):
        return "Token counts are not available: only the server can count them."
    counts = [(name, tokens or 0) for name, tokens in parts]
    used = sum(tokens for _, tokens in counts)
    length = backend.context_length
    rows = [*counts, ("free", length - used)] if length else counts
    whole = length or used or 1
    lines = [f"{name:<{_QUESTION}} {tokens:>6}  {_bar(tokens, whole)}".rstrip() for name, tokens in rows]
    return "\n".join([*lines, f"{'context' if length else 'total':<{_QUESTION}} {length or used:>6} tokens"])


def _parts(session: ChatSession, backend: Backend) -> Iterator[tuple[str, int | None]]:
    """Each part and the tokens that it adds to the prompt."""
    conversation = session.conversation
    messages: tuple[Message, ...] = ()
    before = 0
    if conversation.system:
        empty = Message("user", "")
        alone, with_system = (
            backend.count((empty,)),
            backend.count((Message("system", conversation.system), empty)),
        )
        known = None if alone is None or with_system is None else with_system - alone
        yield "system text", known
        before, messages = known or 0, (Message("system", conversation.system),)
    for number, turn in enumerate(conversation.turns, 1):
        messages = (*messages, turn.question, turn.answer)
        tokens = backend.count(messages)
        question = one_line(turn.question.content)[: _QUESTION - 5]
        yield f"{number}. {question}", None if tokens is None else tokens - before
        before = tokens or 0


def _bar(tokens: int, whole: int) -> str:
    return "█" * max(1 if tokens > 0 else 0, round(_BAR * tokens / whole))
