"""JSON Schemas as values: their parts, tighter ones, and whether JSON is valid under one.

Keywords: https://json-schema.org/draft/2020-12/json-schema-validation
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

Place = tuple[str | int, ...]  # keys and indices from the root

_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # objects of schemas
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems", "contains", "propertyNames", "not", "if")
_SINGLES = (*_SINGLE, "then", "else", "unevaluatedItems", "unevaluatedProperties")
_COMBINED = ("anyOf", "oneOf", "$ref")
_HIGHEST = ("maximum", "exclusiveMaximum")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_EXACT = ("multipleOf", "const", "enum")
_LARGEST = 2**53 - 1  # RFC 7493, 2.2
_FINEST, _FINE = 1e-9, 1e-6  # the last decimal; bounds below this would leave it no room
_MOST_DIGITS = 4  # of a factor: the grammar of its multiples has as many states, which take minutes beyond
_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")


def children(schema: object) -> Iterator[tuple[Place, Any]]:
    """The schemas directly inside a schema, each with its place there."""
    if not isinstance(schema, Mapping):
        return
    for keyword, value in schema.items():
        if keyword in _NAMED and isinstance(value, Mapping):
            yield from (((keyword, name), child) for name, child in value.items())
        elif isinstance(value, Sequence) and (keyword in _LISTED or keyword == "items"):
            yield from (((keyword, index), child) for index, child in enumerate(value))
        elif keyword in _SINGLES:
            yield (keyword,), value


def pointer(place: Place) -> str:
    """The place as a JSON Pointer (RFC 6901); "/" for the root."""
    return "/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in place)


def tighten(schema: Any) -> Any:
    """The schema without what small models write for ever: more properties, more digits.

    Where it says nothing of them, an object has only the properties that it lists, a number is one that every
    program can read, and has nine decimals at most. Unchanged where that could contradict another part.
    """
    return _tight(schema) if all(map(_can_tighten, parts(schema))) else schema


def parts(schema: object) -> Iterator[object]:
    yield schema
    for _, child in children(schema):
        yield from parts(child)


def largest_factor(schema: object) -> int | float | None:
    """A `multipleOf` whose grammar would be too large; None without one."""
    values = (
        part["multipleOf"] for part in parts(schema) if isinstance(part, Mapping) and "multipleOf" in part
    )
    numbers = (each for each in values if isinstance(each, int | float))
    long = (each for each in numbers if len(Decimal(str(each)).normalize().as_tuple().digits) > _MOST_DIGITS)
    return next(long, None)


def _can_tighten(part: object) -> bool:
    if not isinstance(part, Mapping):
        return True
    return "allOf" not in part and not ("properties" in part and any(each in part for each in _COMBINED))


def _tight(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    copy = {key: _shallow_copy(value) for key, value in schema.items()}
    for (keyword, *name), child in children(schema):
        if name:
            copy[keyword][name[0]] = _tight(child)
        else:
            copy[keyword] = _tight(child)
    if "properties" in copy and not any(each in copy for each in _OPEN):
        copy["additionalProperties"] = False
    return {**_number_limits(copy), **copy}


def _shallow_copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value


def _number_limits(schema: Mapping[str, Any]) -> dict[str, object]:
    """Limits for the numbers of a schema, without those that it has."""
    types = schema.get("type")
    types = types if isinstance(types, list) else [types]
    if not {"integer", "number"} & set(map(str, types)) or any(each in schema for each in _EXACT):
        return {}
    bounds = [schema[each] for each in _BOUNDS if isinstance(schema.get(each), int | float)]
    limits: dict[str, object] = {} if bounds else {"minimum": -_LARGEST, "maximum": _LARGEST}
    room = [*map(abs, bounds), *([max(bounds) - min(bounds)] if len(bounds) > 1 else [])]
    highest = [schema[each] for each in _HIGHEST if isinstance(schema.get(each), int | float)]
    above_zero = not highest or min(highest) > 0  # below, llama.cpp's llguidance finds no such multiple
    if "number" in types and above_zero and all(each == 0 or each >= _FINE for each in room):
        limits["multipleOf"] = _FINEST
    return limits


def schema_violation(schema: str, text: str) -> str | None:
    """Why `text` is not JSON that is valid under `schema`; None if it is."""
    try:
        value = json.loads(text, parse_float=Decimal)
        error = next(iter(_validator(schema).iter_errors(value)), None)
    except RecursionError:
        return "it is nested too deeply"
    except ValueError as problem:
        return f"it is not JSON: {problem}"
    if error is None:
        return None
    where = f" at {pointer(tuple(error.absolute_path))}" if error.absolute_path else ""
    return f"{' '.join(error.message.split())}{where}"


@lru_cache(maxsize=8)
def _validator(schema: str) -> Any:
    """jsonschema's validator with exact decimals, and with `regex` for patterns, which knows \\p{L}."""
    from jsonschema import Draft202012Validator, ValidationError, validators

    def multiple(_: object, factor: Any, value: Any, __: object) -> Iterator[ValidationError]:
        if (
            isinstance(value, int | Decimal)
            and not isinstance(value, bool)
            and not _is_multiple(value, factor)
        ):
            yield ValidationError(f"{value} is not a multiple of {factor}")

    def matching(_: object, pattern: str, value: Any, __: object) -> Iterator[ValidationError]:
        if isinstance(value, str) and not _finds(pattern, value):
            yield ValidationError(f"{value!r} does not match {pattern!r}")

    def named(validator: Any, patterns: Any, value: Any, __: object) -> Iterator[ValidationError]:
        for pattern, child in patterns.items() if isinstance(value, dict) else ():
            for name in (name for name in value if _finds(pattern, name)):
                yield from validator.descend(value[name], child, path=name, schema_path=pattern)

    parsed = json.loads(schema, parse_float=Decimal)
    base = validators.validator_for(parsed, default=Draft202012Validator)
    own = {"multipleOf": multiple, "pattern": matching, "patternProperties": named}
    return validators.extend(base, own)(parsed)


def _is_multiple(value: int | Decimal, factor: int | Decimal) -> bool:
    try:
        return Decimal(value) % Decimal(factor) == 0
    except InvalidOperation:  # more digits than decimals have here
        return True


def _finds(pattern: str, text: str) -> bool:
    import regex  # type: ignore[import-untyped]

    try:
        return regex.search(pattern, text) is not None
    except regex.error:  # of another dialect; the engine has applied it
        return True
