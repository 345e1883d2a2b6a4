"""Constraints of an answer: reading them from options, and through JSON."""

import json
from dataclasses import asdict

import pytest

from localgemma_cli.constraint import Choices, Constraint, JsonSchema, Regex, constraint_from


@pytest.mark.parametrize(
    "constraint", [JsonSchema('{"b": 1, "a": 2}'), Choices(("yes", "no, never")), Regex("[0-9]+")]
)
def test_a_constraint_goes_through_json(constraint: Constraint) -> None:
    assert constraint_from(json.loads(json.dumps(asdict(constraint)))) == constraint


def test_another_object_is_no_constraint() -> None:
    with pytest.raises(ValueError, match="not a constraint"):
        constraint_from({"pattern": "x"})
