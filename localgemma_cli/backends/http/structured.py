"""Constraints as fields of a request to a server, and the answer that comes back.

Most servers take only a JSON Schema: a choice or a regular expression is asked for as JSON with one property.
"""

import json
from collections.abc import Mapping
from typing import Any

from localgemma_cli.constraint import Choices, Constraint, JsonSchema, Regex
from localgemma_cli.prompts.json_schema import parts, tighten

_PROPERTY = "answer"
_NATIVE_OWNERS = ("vllm",)  # take choices and regular expressions as they are


def is_wrapped(constraint: Constraint | None, owner: str) -> bool:
    """Whether the answer comes as JSON with one property; `owner`: the software of the server."""
    return isinstance(constraint, Choices | Regex) and owner not in _NATIVE_OWNERS


def openai_constraint(constraint: Constraint | None, owner: str) -> dict[str, object]:
    """The fields of a request to `/v1/chat/completions`."""
    if constraint is None:
        return {}
    if not isinstance(constraint, JsonSchema) and not is_wrapped(constraint, owner):
        return _native(constraint)
    schema = schema_of(constraint)
    named = {"name": "answer", "schema": schema, "strict": _is_strict(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _native(constraint: Choices | Regex) -> dict[str, object]:
    """For vLLM: its field since 0.11, and the one before, which the others ignore."""
    if isinstance(constraint, Choices):
        choices = list(constraint.choices)
        return {"structured_outputs": {"choice": choices}, "guided_choice": choices}
    return {"structured_outputs": {"regex": constraint.regex}, "guided_regex": constraint.regex}


def schema_of(constraint: Constraint) -> Any:
    """The JSON Schema of what the server has to write."""
    match constraint:
        case JsonSchema(schema):
            return tighten(json.loads(schema))
        case Choices(choices):
            value: dict[str, object] = {"type": "string", "enum": list(choices)}
        case Regex(pattern):
            value = {"type": "string", "pattern": f"^(?:{pattern})$"}
    return {
        "type": "object",
        "properties": {_PROPERTY: value},
        "required": [_PROPERTY],
        "additionalProperties": False,
    }


def unwrap(text: str) -> str:
    """The text that the JSON holds; `text` itself from a server that wrote something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    inner = value.get(_PROPERTY) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, str) else text


def _is_strict(schema: object) -> bool:
    """Whether OpenAI's strict mode takes it: closed objects, whose properties are all required."""
    objects = (part for part in parts(schema) if isinstance(part, Mapping) and "properties" in part)
    return all(
        part.get("additionalProperties") is False and set(part["properties"]) == set(part.get("required", ()))
        for part in objects
    )
