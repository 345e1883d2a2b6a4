"""JSON Schemas: their parts, closed objects, and validity with exact numbers."""

import json
import re
from typing import Any

import pytest

from localgemma_cli.prompts.json_schema import children, pointer, schema_violation, tighten


def test_the_parts_of_a_schema_are_found_and_data_is_not_taken_for_schemas() -> None:
    schema = {
        "properties": {"properties": {"type": "string"}, "a": {"const": {"items": {}}}},
        "$defs": {"x": {"enum": [{"anyOf": []}]}},
        "items": {"type": "null"},
        "prefixItems": [{"minimum": 1}],
        "additionalProperties": False,
        "default": {"items": {}},
    }
    assert [pointer(place) for place, _ in children(schema)] == [
        "/properties/properties",
        "/properties/a",
        "/$defs/x",
        "/items",
        "/prefixItems/0",
        "/additionalProperties",
    ]
    assert pointer(("a/b", "~", 0)) == "/a~1b/~0/0"


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (
            {"properties": {"a": {"properties": {}}}, "$defs": {"b": {"properties": {}}}},
            ["", "properties.a", "$defs.b"],
        ),
        ({"properties": {"a": {"additionalProperties": {}, "properties": {}}}}, [""]),
        ({"properties": {"additionalProperties": {}}}, [""]),
        ({"type": "object"}, []),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, []),
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]}, []),
        ({"anyOf": [{"properties": {"b": {}}}, {"type": "null"}]}, ["anyOf.0"]),
        ({"const": {"properties": {}}}, []),
    ],
)
def test_objects_that_say_nothing_of_other_properties_are_closed(schema: Any, closed: list[str]) -> None:
    before = json.dumps(schema)
    result: Any = tighten(schema)
    found = []

    def look(part: Any, place: str) -> None:
        if isinstance(part, dict):
            if part.get("additionalProperties") is False:
                found.append(place)
            for key, child in part.items():
                look(child, f"{place}.{key}".lstrip("."))
        elif isinstance(part, list):
            for index, child in enumerate(part):
                look(child, f"{place}.{index}")

    look(result, "")
    assert found == closed
    assert json.dumps(schema) == before


LARGEST = 2**53 - 1


@pytest.mark.parametrize(
    ("schema", "limits"),
    [
        ({"type": "integer"}, {"minimum": -LARGEST, "maximum": LARGEST}),
        ({"type": ["integer", "null"]}, {"minimum": -LARGEST, "maximum": LARGEST}),
        ({"type": "integer", "minimum": 2**60}, {}),
        ({"type": "number"}, {"minimum": -LARGEST, "maximum": LARGEST, "multipleOf": 1e-9}),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, {"multipleOf": 1e-9}),
        ({"type": "number", "maximum": 1e-7}, {}),
        ({"type": "number", "minimum": 0.12345678901, "maximum": 0.12345678902}, {}),
        ({"type": "number", "multipleOf": 0.5}, {}),
        ({"type": "number", "enum": [0.1234567890123]}, {}),
        ({"minimum": 3}, {}),
    ],
)
def test_numbers_get_an_end(schema: Any, limits: dict[str, object]) -> None:
    assert tighten(schema) == {**schema, **limits}
    assert tighten({"items": schema})["items"] == {**schema, **limits}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"multipleOf": 0.01}, "0.07"),  # 7.000000000000001 as binary floats
        ({"type": "number", "maximum": 0.3}, "0.3"),
        ({"pattern": "^\\p{Lu}+$"}, '"ÉÀ"'),
        ({"pattern": "(?P<"}, '"of another dialect"'),
        ({"patternProperties": {"^\\p{Lu}": {"type": "null"}}}, '{"É": null}'),
        ({"type": "object", "required": ["a"]}, '{"a": [1, 2]}'),
    ],
)
def test_what_is_valid(schema: Any, text: str) -> None:
    assert schema_violation(json.dumps(schema), text) is None


@pytest.mark.parametrize(
    ("schema", "text", "why"),
    [
        ({"type": "integer"}, "[", "it is not JSON: "),
        ({"items": {"properties": {"a": {"maximum": 3}}}}, '[{"a": 2}, {"a": 4}]', "4 is .* at /1/a"),
        ({"multipleOf": 0.01}, "0.071", "0.071 is not a multiple of 0.01"),
        ({"pattern": "^a$"}, '"b"', "'b' does not match"),
        ({"patternProperties": {"^\\p{Lu}": {"type": "null"}}}, '{"É": 1}', "1 is not of type 'null' at /É"),
        ({"enum": ["a\nb"]}, '"c"', "'c' is not one of"),
        ({}, "[" * 10**5, "nested too deeply"),
        ({"required": ["a"]}, "{}", "'a' is a required property"),
    ],
)
def test_what_is_not_valid_and_why(schema: Any, text: str, why: str) -> None:
    assert re.match(f"{why}|.*{why}", schema_violation(json.dumps(schema), text) or "")
