"""A prompt with named fields."""

import pytest

from localgemma_cli.errors import UsageError
from localgemma_cli.prompt_template import parse_template


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Translate: {text}", "Translate: Guten Tag"),
        ("{text}", "Guten Tag"),
        ("{text}{n}{text}", "Guten Tag3Guten Tag"),
        ("{First Name}, {a.b}", "Ada, dot"),
        ("{{text}} {{{n}}} }}{{", "{text} {3} }{"),
        ("{braces}", "{text}"),
        ("{list} {true}", '[1, "é"] true'),
        ("no field", "no field"),
    ],
)
def test_fields_are_filled_and_doubled_braces_are_text(text: str, prompt: str) -> None:
    values = {
        "text": "Guten Tag",
        "n": 3,
        "First Name": "Ada",
        "a.b": "dot",
        "braces": "{text}",
        "list": [1, "é"],
        "true": True,
    }
    assert parse_template(text, "--prompt-template").fill(values) == prompt


def test_the_fields_are_listed_once_each() -> None:
    assert parse_template("{b} {a} {b} {{c}}", "--prompt-template").fields == ("b", "a")


@pytest.mark.parametrize("text", ["{", "}", "a {} b", "{a", "a}", "{a{b}}", "{{a}", "{a\nb}"])
def test_a_brace_that_belongs_to_no_field_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--prompt-template has a brace") as refused:
        parse_template(text, "--prompt-template")
    assert "{{" in refused.value.hint


@pytest.mark.parametrize("values", [{"other": 1}, {"text": None, "other": 1}])
def test_a_missing_field_is_named_with_those_that_the_data_have(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"There is no field 'text'\.") as refused:
        parse_template("{text}", "--prompt-template").fill(values)
    assert "Fields: other." in refused.value.hint
