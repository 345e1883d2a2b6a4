"""What an answer must be: JSON of a schema, one of some choices, or what a regular expression matches."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class JsonSchema:
    """JSON that is valid under `schema`, a JSON Schema as JSON text; the order of its keys is kept."""

    schema: str


@dataclass(frozen=True)
class Choices:
    """One of `choices`, without anything before or after it."""

    choices: tuple[str, ...]


@dataclass(frozen=True)
class Regex:
    """Text that `regex` matches from its beginning to its end."""

    regex: str


Constraint = JsonSchema | Choices | Regex


def constraint_from(value: Mapping[str, object]) -> Constraint:
    """The inverse of `dataclasses.asdict`, for a constraint that was sent as JSON."""
    match value:
        case {"schema": str(schema)}:
            return JsonSchema(schema)
        case {"choices": [*choices]}:
            return Choices(tuple(map(str, choices)))
        case {"regex": str(regex)}:
            return Regex(regex)
    raise ValueError("not a constraint")
