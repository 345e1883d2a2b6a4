"""Constraints as llguidance's grammars, and messages about what it does not support."""

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from localgemma_cli.constraint import Choices, Constraint, JsonSchema, Regex
from localgemma_cli.errors import UsageError
from localgemma_cli.prompts.grammar import grammar_of, require_supported


def accepts(constraint: Constraint, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), grammar_of(constraint))
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("constraint", "accepted", "refused"),
    [
        (Choices(('a"b', "c/d\n", "é 🙂")), ['a"b', "c/d\n", "é 🙂"], ["a", "é", 'a"b ', ""]),
        (Regex("[0-9]+/\\/\\d"), ["12//3"], ["12/3", "12\\//3"]),
        (Regex("a\nb|^c$"), ["a\nb", "c"], ["a", "cc"]),
        (Regex("\\\\/(?i)é"), ["\\/É"], ["/é"]),
        (JsonSchema('{"type": "array", "items": {"type": "integer"}}'), ["[1, -2]", "[]"], ["[1,2]", "[ 1]"]),
        (
            JsonSchema('{"properties": {"é": {}, "b": {"type": "null"}}, "type": "object"}'),
            ['{"é": [{"x": 1}]}', '{"b": null}', "{}"],
            ['{"c": 1}', '{"b": 1}', '{\n"b": null}'],
        ),
        (JsonSchema("true"), ["null", '{"a": 1}'], ["nul"]),
        (JsonSchema('{"x-guidance": {"item_separator": ","}, "type": "array"}'), ["[1,2]"], ["[1, 2]"]),
    ],
)
def test_a_grammar_accepts_what_the_constraint_says(
    constraint: Constraint, accepted: list[str], refused: list[str]
) -> None:
    require_supported(constraint, "--it")
    assert [each for each in accepted if not accepts(constraint, each)] == []
    assert [each for each in refused if accepts(constraint, each)] == []


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "objekt"}, "objekt is not a type"),
        (
            {"properties": {"a/b": {"items": {"uniqueItems": True}}}},
            "uniqueItems is not supported, at /properties/a~1b/items",
        ),
        ({"anyOf": [{"type": "null"}, {"not": {}}]}, "not is not supported, at /anyOf/1"),
        ({"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"if": {}}}}, "if is .* at /\\$defs/a"),
        ({"type": "string", "format": "foo"}, "the format foo is not supported"),
        ({"$ref": "http://x/y"}, "http://x/y is not in the schema, and is not downloaded"),
        ({"$ref": "#/$defs/a"}, "there is no /\\$defs/a"),
        ({"oneOf": [{"type": "string"}, {"minLength": 1}]}, "oneOf is not supported if two of it can match"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "nothing can match: minimum \\(5\\) is greater"),
        ({"type": "string", "pattern": "(?<=x)y"}, "look-around, .* is not supported"),
        ({"type": "string", "pattern": "\\bx"}, "lookarounds are not supported"),
        ({"minimum": "a"}, 'minimum expects a number \\(got "a"\\)'),
        ({"$ref": "#"}, "nothing can match"),
        ({"multipleOf": 99991}, "multipleOf has more than four significant digits \\(99991\\)"),
        ({"required": "a"}, 'required expects array \\(got "a"\\)'),
    ],
)
def test_what_a_schema_has_that_is_not_supported_is_said_with_its_place(schema: object, why: str) -> None:
    with pytest.raises(UsageError, match=f"^--schema s.json cannot be used: {why}[^\n]*\\.$") as raised:
        require_supported(JsonSchema(json.dumps(schema)), "--schema s.json")
    assert raised.value.hint in ("Change that part of the schema.", "Round it.")


def test_no_part_is_looked_for_in_a_schema_that_is_too_big(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part would be compiled by itself: a thousand of them took minutes."""
    asked = list[str]()
    real = LLMatcher.validate_grammar_with_warnings
    monkeypatch.setattr(
        LLMatcher, "validate_grammar_with_warnings", lambda grammar: (asked.append(grammar), real(grammar))[1]
    )
    many = {"properties": {"a": {"enum": [f"v{n}" for n in range(100_000)]}, "b": {}}}
    with pytest.raises(UsageError, match=r"^--schema cannot be used: .* too big"):
        require_supported(JsonSchema(json.dumps(many)), "--schema")
    assert len(asked) == 1
    asked.clear()
    bad = {"properties": {**{f"p{n}": {} for n in range(300)}, "last": {"not": {}}}}
    with pytest.raises(UsageError, match=r"^--schema cannot be used: not is not supported\.$"):
        require_supported(JsonSchema(json.dumps(bad)), "--schema")
    assert len(asked) < 250


@pytest.mark.parametrize(
    ("pattern", "why"),
    [("[", "unclosed character class"), ("(a)\\1", "backreferences are not supported"), ("a(?=b)", "look-")],
)
def test_what_a_regular_expression_has_that_is_not_supported_is_said(pattern: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"^--regex cannot be used: {why}"):
        require_supported(Regex(pattern), "--regex")
