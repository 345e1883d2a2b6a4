"""A conversation that is resumed: what of it is shown, and whose token ids it holds."""

from dataclasses import replace

import pytest
from support.chat import Chat

from localgemma_cli.chat.resume import format_question, select_last_turns
from localgemma_cli.conversation import Conversation, Message, Turn


def turn(question: str, answer: str) -> Turn:
    return Turn(Message("user", question), Message("assistant", answer), "stop")


def test_the_last_turns_that_fill_a_screen_are_shown() -> None:
    turns = [turn(f"question {number}", "two\nlines") for number in range(30)]
    assert select_last_turns(turns, 80, 24) == turns[-4:]
    assert select_last_turns(turns[:3], 80, 24) == turns[:3]
    long = turn("q", "word " * 10_000)
    assert select_last_turns([*turns, long], 80, 24) == [long]
    assert len(select_last_turns(turns, 3, 24)) < 4


def test_a_question_is_shown_with_the_names_of_its_files_and_not_for_ever() -> None:
    file = "File notes.txt:\n```\n" + "line\n" * 1000 + "```\n\n"
    assert format_question(turn(f"{file}Sum it up.", ""), 80, 24) == "[with notes.txt]\nSum it up."
    assert format_question(turn("line\n" * 100, ""), 80, 24) == "line\n" * 12 + "…"
    assert len(format_question(turn("x" * 100_000, ""), 80, 24)) < 1000


@pytest.mark.parametrize("ids", [(2**32 - 1,), (5, 6, 7), ()])
def test_ids_that_do_not_say_what_was_said_are_read_again_as_text(ids: tuple[int, ...]) -> None:
    chat = Chat()
    chat.ask("Hello, my name is Ada.")
    own = chat.turns[0]
    foreign = replace(own, answer=replace(own.answer, token_ids=ids))
    chat.session.switch_conversation(Conversation(None, (own, foreign)), None)
    chat.ask("What is my name?")
    assert chat.said == ["[1 saved answer tokenized again: saved with another tokenizer]"]
    assert [each.answer.token_ids for each in chat.turns[:2]] == [own.answer.token_ids, None]
