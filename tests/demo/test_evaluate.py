"""The judge: what counts as right."""

from collections import Counter

from localgemma_cli.demo.dialogues import ONE_WORD, PIRATE, UPPER
from localgemma_cli.demo.evaluate import Case, Messages, cases, evaluate, has_facts, is_right
from localgemma_cli.demo.reading import normalise, read_corpus, select


def test_the_sections_have_their_sizes() -> None:
    sizes = Counter(case.section for case in cases())
    assert sizes["questions"] >= 100
    assert (sizes["recalls"], sizes["system_texts"], sizes["out_of_scope"]) == (50, 30, 20)


def test_no_judged_turn_was_trained_on() -> None:
    trained = {
        normalise(question) for topic in select(read_corpus(), "train").topics for question in topic.questions
    }
    for case in cases():
        assert normalise(case.turns[-1]) not in trained


def test_recalls_have_unrelated_turns_in_between() -> None:
    for case in cases():
        if case.section == "recalls":
            assert len(case.turns) >= 3


def test_a_fact_is_one_of_its_alternatives_as_a_word() -> None:
    assert has_facts("Your number is 12.", (("12",),))
    assert not has_facts("Your number is 123.", (("12",),))
    assert has_facts("Run `pip install .`", (("pip", "conda"),))


def test_a_manner_is_judged() -> None:
    facts = (("google",),)
    assert is_right(Case("s", ("q",), (("Google",),), manner=ONE_WORD), "Google.")
    assert not is_right(Case("s", ("q",), (("Google",),), manner=ONE_WORD), "By Google.")
    assert is_right(Case("s", ("q",), facts, manner=UPPER), "BY GOOGLE.")
    assert not is_right(Case("s", ("q",), facts, manner=UPPER), "By GOOGLE.")
    assert is_right(Case("s", ("q",), facts, manner=PIRATE), "Arr! By Google.")
    assert not is_right(Case("s", ("q",), facts, manner=PIRATE), "By Google.")


def test_a_system_text_can_be_followed_with_a_wrong_answer() -> None:
    report = evaluate(lambda messages: "Arr", limit=1)
    assert report.sections["system_texts"].right == 10 + 10  # one word, and pirate
    assert report.sections["system_answers"].right == 0


def test_a_mute_model_gets_nothing_right() -> None:
    report = evaluate(lambda messages: "", limit=5)
    assert all(tally.right == 0 for tally in report.sections.values())
    asked = [each for each in report.outcomes if each.case.section in ("questions", "small_talk")]
    assert len(asked) == 5


def test_the_models_own_answers_stand_in_the_conversation() -> None:
    seen: list[Messages] = []

    def answer(messages: Messages) -> str:
        seen.append([dict(message) for message in messages])
        return f"answer {len(messages)}"

    evaluate(answer, limit=1)
    longest = max(seen, key=len)
    turns = [message["role"] for message in longest if message["role"] != "system"]
    assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]
