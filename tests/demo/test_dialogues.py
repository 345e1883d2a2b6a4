"""Training chats are made from a seed, and say what the corpus says."""

import random
from itertools import islice

from localgemma_cli.demo.dialogues import ONE_WORD, PIRATE, UPPER, Dialogues, Turn, fold, in_manner
from localgemma_cli.demo.reading import normalise, read_corpus, select

CORPUS = select(read_corpus(), "train")


def chats(seed: int, count: int = 20) -> list[list[Turn]]:
    dialogues = Dialogues(CORPUS, random.Random(seed))
    return [list(islice(dialogues.chat(), 12)) for _ in range(count)]


def test_a_seed_is_a_set_of_chats() -> None:
    assert chats(3) == chats(3)
    assert chats(3) != chats(4)


def test_no_turn_is_empty_and_no_answer_needs_trimming() -> None:
    for turn in (turn for chat in chats(1, 100) for turn in chat):
        assert turn.user.strip()
        assert turn.model == turn.model.strip() != ""


def test_manners_change_the_answer_only_as_asked() -> None:
    answer = "You can stop your answer."
    assert in_manner(ONE_WORD, answer, "Stop") == "Stop"
    assert in_manner(UPPER, answer, "") == "YOU CAN STOP YOUR ANSWER."
    assert in_manner(PIRATE, answer, "") == "Arr, matey! Ye can stop yer answer."
    assert in_manner("plain", answer, "") == answer


def test_the_system_text_stands_before_the_first_turn() -> None:
    assert fold("Be brief.", "Hello") == "Be brief.\n\nHello"
    assert fold("", "Hello") == "Hello"


def test_nothing_held_out_is_ever_said() -> None:
    held = {
        normalise(phrasing)
        for corpus in (select(read_corpus(), "dev"), select(read_corpus(), "test"))
        for phrasing in (
            *(question for topic in corpus.topics for question in topic.questions),
            *(ask for memory in corpus.memories for ask in memory.asks),
            *(text for manner in corpus.manners for text in manner.texts),
        )
    }
    for turn in (turn for chat in chats(5, 300) for turn in chat):
        for said in turn.user.split("\n\n"):
            assert normalise(said) not in held
