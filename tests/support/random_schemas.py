"""JSON Schemas at random: nested objects, arrays, enums, bounds, patterns, unions, unicode; short answers."""

import random
from collections.abc import Callable
from typing import Any

_NAMES = (
    "name",
    "größe",
    "年齢",
    "is ok",
    "a/b",
    'q"uote',
    "emoji🙂",
    "tags",
    "x",
    "Straße",
    "_id",
    "back\\slash",
)
_WORDS = ("red", "grün", "青", "🙂", "", "a b", 'say "hi"', "tab\there", "line\nend", "c:\\d", "é")
_PATTERNS = (
    "^[A-Z]{2}-[0-9]{3}$",
    "^(mon|tues|wednes)day$",
    "^[äöü]{1,3}[a-z]*é$",
    "^\\p{Lu}\\p{Ll}{1,6}$",
    "^#[0-9a-f]{6}$",
    "^[^aeiou\\s]{2,4}$",
    "^[ぁ-ん]{1,4}$",
)
_FORMATS = ("date", "time", "uuid", "ipv4", "email")


def random_schema(seed: int) -> dict[str, Any]:
    """The schema of a number; its root is an object or an array."""
    source = random.Random(seed)
    kind = source.choice((_object, _object, _object, _array))
    schema = kind(source, source.randint(1, 3))
    if source.random() < 0.2:
        schema = {"$defs": {"shared": _leaf(source)}, **schema}
        if "properties" in schema:
            schema["properties"]["shared"] = {"$ref": "#/$defs/shared"}
    return schema


def _any(source: random.Random, depth: int) -> dict[str, Any]:
    if depth == 0 or source.random() < 0.4:
        return _leaf(source)
    kinds: tuple[Callable[[random.Random, int], dict[str, Any]], ...] = (_object, _array, _tuple, _union)
    return source.choice(kinds)(source, depth - 1)


def _object(source: random.Random, depth: int) -> dict[str, Any]:
    names = source.sample(_NAMES, source.randint(1, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _any(source, depth) for name in names},
        "required": [name for name in names if source.random() < 0.7],
    }
    if source.random() < 0.5:
        schema["additionalProperties"] = False
    return schema


def _array(source: random.Random, depth: int) -> dict[str, Any]:
    least = source.randint(0, 2)
    return {
        "type": "array",
        "items": _any(source, depth),
        "minItems": least,
        "maxItems": least + source.randint(0, 2),
    }


def _tuple(source: random.Random, depth: int) -> dict[str, Any]:
    count = source.randint(1, 3)
    items = [_any(source, depth) for _ in range(count)]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": count}


def _union(source: random.Random, depth: int) -> dict[str, Any]:
    if source.random() < 0.3:
        return {"oneOf": [_number(source), _string(source), {"type": "null"}]}
    return {"anyOf": [_any(source, depth) for _ in range(source.randint(2, 3))]}


def _leaf(source: random.Random) -> dict[str, Any]:
    return source.choice((_number, _number, _string, _string, _string, _enum, _plain))(source)


def _number(source: random.Random) -> dict[str, Any]:
    low, size = source.randint(-1000, 1000), source.randint(1, 500)
    if source.random() < 0.3:
        return {"type": "number", "exclusiveMinimum": low / 8, "maximum": low / 8 + size}
    schema: dict[str, Any] = {"type": "integer", "minimum": low, "exclusiveMaximum": low + size + 8}
    if source.random() < 0.2:
        schema["multipleOf"] = source.choice((2, 3, 7))
    return schema


def _string(source: random.Random) -> dict[str, Any]:
    draw = source.random()
    if draw < 0.4:
        return {"type": "string", "pattern": source.choice(_PATTERNS), "maxLength": 24}
    if draw < 0.5:
        return {"type": "string", "format": source.choice(_FORMATS[:4])}
    least = source.randint(0, 4)
    return {"type": "string", "minLength": least, "maxLength": least + source.randint(0, 20)}


def _enum(source: random.Random) -> dict[str, Any]:
    values: list[object] = [
        *source.sample(_WORDS, source.randint(1, 4)),
        source.choice((None, True, 1.5, -3)),
    ]
    return {"enum": values}


def _plain(source: random.Random) -> dict[str, Any]:
    return source.choice(
        ({"type": "boolean"}, {"type": "null"}, {"const": "ß🙂"}, {"type": ["boolean", "null"]})
    )
