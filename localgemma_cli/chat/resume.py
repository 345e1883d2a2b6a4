"""What of a conversation is shown again when it is resumed, and whose token ids it holds."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from localgemma_cli.backends.base import Backend
from localgemma_cli.chat.slash.outcome import counted
from localgemma_cli.conversation import Conversation, Turn
from localgemma_cli.sessions.titles import files_and_words

_BELOW = 8  # rows: what is said of the earlier turns, the prompt and its menu, the bar


def format_question(turn: Turn, columns: int, rows: int) -> str:
    """With the names of its files in their place, and no more of it than half a screen."""
    names, words = files_and_words(turn.question.content)
    lines = [*([f"[with {', '.join(names)}]"] if names else []), *words.split("\n")]
    shown: list[str] = []
    for line in lines:
        if _height("\n".join([*shown, line]), columns) > max(2, rows // 2):
            return "\n".join([*shown, "…"]) if shown else f"{line[: columns * rows // 2]}…"
        shown.append(line)
    return "\n".join(shown)


def select_last_turns(turns: Sequence[Turn], columns: int, rows: int) -> Sequence[Turn]:
    """The last turns that fill one screen at most, one at least."""
    left = rows - _BELOW
    for count, turn in enumerate(reversed(turns)):
        left -= 1 + sum(
            _height(text, columns) for text in (format_question(turn, columns - 2, rows), turn.answer.content)
        )
        if left < 0:
            return turns[-max(1, count) :]
    return turns


def _height(text: str, columns: int) -> int:
    """In rows of a terminal."""
    from prompt_toolkit.utils import get_cwidth  # a script that resumes a conversation does without

    return sum(max(1, -(-get_cwidth(line) // max(1, columns))) for line in text.split("\n"))


def drop_foreign_ids(
    conversation: Conversation, backend: Backend, say: Callable[[str], None]
) -> Conversation:
    """Token ids only where they are the backend's and say what was said; else the text is read again."""
    turns = tuple(
        turn
        if turn.answer.token_ids is None or backend.recognizes(turn.answer)
        else replace(turn, answer=replace(turn.answer, token_ids=None))
        for turn in conversation.turns
    )
    changed = sum(old is not new for old, new in zip(conversation.turns, turns, strict=True))
    if changed:
        say(f"[{counted(changed, 'saved answer')} tokenized again: saved with another tokenizer]")
    return replace(conversation, turns=turns)
