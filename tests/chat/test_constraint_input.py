"""Constraints from options: files, inline JSON, lists of words."""

from pathlib import Path

import pytest

from localgemma_cli.chat.constraint_input import choices_from, parse_choices, read_constraint, schema_from
from localgemma_cli.constraint import Choices, JsonSchema, Regex
from localgemma_cli.errors import NotFoundError, UsageError


def test_one_of_three_options_or_none(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text('\ufeff{"type": "object",\n "required": ["é"]}\n', encoding="utf-8")
    expected = JsonSchema('{"type": "object", "required": ["é"]}')
    assert read_constraint(str(file), None, None) == expected
    assert read_constraint(' {"type": "object", "required": ["é"]}', None, None) == expected
    assert read_constraint(None, "a,b", None) == Choices(("a", "b"))
    assert read_constraint(None, None, "a+") == Regex("a+")
    assert read_constraint(None, None, None) is None


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("yes,no", ("yes", "no")),
        (" yes , no ,  it depends", ("yes", "no", "it depends")),
        ('"New York, NY", Paris', ("New York, NY", "Paris")),
        ("é,🙂", ("é", "🙂")),
    ],
)
def test_choices_are_separated_by_commas(text: str, choices: tuple[str, ...]) -> None:
    assert parse_choices(text) == Choices(choices)


@pytest.mark.parametrize("text", ["", " ", "yes", "yes,", ",", '""'])
def test_there_are_two_choices_or_more(text: str) -> None:
    with pytest.raises(UsageError, match="--choice needs two or more words"):
        parse_choices(text)


def test_no_choice_comes_twice() -> None:
    with pytest.raises(UsageError, match="labels has no twice"):
        choices_from(["yes", "no", "no"], "labels")


def test_what_cannot_be_a_schema(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text('{"type": "object",}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"--schema .*s\.json cannot be used: it is not JSON: .*line 1"):
        read_constraint(str(file), None, None)
    with pytest.raises(UsageError, match="--schema cannot be used: it is not JSON"):
        read_constraint('{"type"', None, None)
    with pytest.raises(NotFoundError, match=r"Cannot read nowhere\.json"):
        read_constraint("nowhere.json", None, None)
    with pytest.raises(UsageError, match="schema of row 3 cannot be used: schema must be an object"):
        schema_from(3, "schema of row 3")
