"""The value of an answer of a form, and the code block of one that has a block."""

import pytest

from localgemma_cli.constraint import Choices, Constraint, JsonSchema, Regex
from localgemma_cli.prompts.answer_value import answer_value, first_code_block


@pytest.mark.parametrize(
    ("constraint", "text", "value"),
    [
        (JsonSchema('{"type": "object"}'), '{"b": 1.5,\n "a": null}', {"b": 1.5, "a": None}),
        (Choices(("yes", "no")), "no", "no"),
        (Regex("[0-9]{3}"), "123", "123"),
    ],
)
def test_the_value_of_a_right_answer(constraint: Constraint, text: str, value: object) -> None:
    assert answer_value(constraint, text) == value


@pytest.mark.parametrize(
    ("constraint", "text", "why"),
    [
        (JsonSchema('{"type": "object"}'), "```json\n{}\n```", "it is not JSON"),
        (JsonSchema('{"type": "object"}'), "[]", "is not of type 'object'"),
        (Choices(("yes", "no")), "no.", "it is none of the choices"),
        (Regex("[0-9]{3}"), "1234", "it does not match"),
        (Regex("[0-9]{3}"), "12", "it does not match"),
    ],
)
def test_why_an_answer_is_not_right(constraint: Constraint, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        answer_value(constraint, text)


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("Here:\n```python\nprint('a')\n\nx\n```\nand\n```\nno\n```", "print('a')\n\nx\n"),
        ("~~~\na ``` b\n~~~", "a ``` b\n"),
        ("````md\n```\ninner\n```\n````", "```\ninner\n```\n"),
        ("```\nlonger closes\n`````", "longer closes\n"),
        ("   ```\nindented\n  ```  ", "indented\n"),
        ("```\n```", ""),
        ("```sh\nnot closed", None),
        ("inline ``` is no fence ```", None),
        ("```\n~~~\n", None),
    ],
)
def test_the_first_code_block(text: str, block: str | None) -> None:
    assert first_code_block(text) == block
