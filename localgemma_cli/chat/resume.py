"""Resuming a saved conversation: which turns are shown again, and which token ids are kept."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.phrases import format_count
from localgemma_cli.conversation import Conversation, Turn
from localgemma_cli.sessions.titles import files_and_words

_BELOW = 8  # rows for the notice about earlier turns, the prompt with its menu, and the toolbar


def format_question(turn: Turn, columns: int, rows: int) -> str:
    """A question with its files as names only, cut to half a screen."""
    names, words = files_and_words(turn.question.content)
    lines = [*([f"[with {', '.join(names)}]"] if names else []), *words.split("\n")]
    shown: list[str] = []
    for line in lines:
        if _height("\n".join([*shown, line]), columns) > max(2, rows // 2):
            return "\n".join([*shown, "…"]) if shown else f"{line[: columns * rows // 2]}…"
        shown.append(line)
    return "\n".join(shown)


def select_last_turns(turns: Sequence[Turn], columns: int, rows: int) -> Sequence[Turn]:
    """The last turns that fit one screen, at least one."""
    left = rows - _BELOW
    for count, turn in enumerate(reversed(turns)):
        left -= 1 + sum(
            _height(text, columns) for text in (format_question(turn, columns - 2, rows), turn.answer.content)
        )
        if left < 0:
            return turns[-max(1, count) :]
    return turns


def _height(text: str, columns: int) -> int:
    """Height in terminal rows."""
    from prompt_toolkit.utils import get_cwidth  # scripts that resume a conversation do not need it

    return sum(max(1, -(-get_cwidth(line) // max(1, columns))) for line in text.split("\n"))


def drop_foreign_ids(
    conversation: Conversation, backend: Backend, say: Callable[[str], None]
) -> Conversation:
    """Drop token ids that the backend's tokenizer does not recognize; their text is tokenized again."""
    turns = tuple(
        turn
        if turn.answer.token_ids is None or backend.recognizes(turn.answer)
        else replace(turn, answer=replace(turn.answer, token_ids=None))
        for turn in conversation.turns
    )
    changed = sum(old is not new for old, new in zip(conversation.turns, turns, strict=True))
    if changed:
        say(f"[{format_count(changed, 'saved answer')} tokenized again: saved with another tokenizer]")
    return replace(conversation, turns=turns)
