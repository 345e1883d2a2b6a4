"""A phrasing said otherwise is still a phrasing, and never one kept for judging."""

import random

from localgemma_cli.demo.phrasing import (
    in_keywords,
    mistyped,
    roughened,
    stated,
    varied,
    with_other_stem,
    with_other_words,
)
from localgemma_cli.demo.reading import part_of, read_corpus, select

CORPUS = select(read_corpus(), "train")
VARIATION = CORPUS.variation


def test_another_stem_keeps_the_rest() -> None:
    text = with_other_stem(random.Random(0), VARIATION, "How do I leave the chat?")
    assert text.endswith("leave the chat?")
    assert not text.startswith("How do I ")


def test_options_and_commands_keep_their_words() -> None:
    rng = random.Random(0)
    for _ in range(100):
        assert "--model" in with_other_words(rng, VARIATION, "How big is the --model option?")
        assert "/exit" in with_other_words(rng, VARIATION, "What does /exit do?")


def test_keywords_leave_out_the_small_words() -> None:
    assert in_keywords("How do I get JSON output?") == "get JSON output"
    assert in_keywords("What is it?") == "What is it?"


def test_one_slip_changes_at_most_one_letter() -> None:
    rng = random.Random(0)
    for _ in range(100):
        assert abs(len(mistyped(rng, "How do I leave the chat?")) - 24) <= 1


def test_varied_phrasings_stay_in_the_trained_part() -> None:
    rng = random.Random(0)
    for topic in CORPUS.topics:
        for question in topic.questions[:5]:
            assert part_of(varied(rng, VARIATION, question)) == "train"


def test_a_statement_keeps_its_place_for_the_value() -> None:
    rng = random.Random(0)
    for memory in CORPUS.memories:
        for statement in memory.statements:
            assert stated(rng, VARIATION, statement).count("{}") == 1


def test_a_roughened_phrasing_is_still_one_line() -> None:
    rng = random.Random(0)
    for _ in range(500):
        text = roughened(rng, VARIATION, "How do I install localgemma?")
        assert text
        assert "\n" not in text
