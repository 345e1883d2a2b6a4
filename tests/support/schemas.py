"""The JSON schemas that the package ships, applied."""

import json
from importlib.resources import files

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SCHEMAS = {
    name: json.loads(
        (files("localgemma_cli") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    )
    for name in ("answer", "plan", "error", "batch", "score")
}
REGISTRY = Registry().with_resources(
    [(schema["$id"], Resource.from_contents(schema)) for schema in SCHEMAS.values()]
)


def validate(value: object, schema: str) -> None:
    Draft202012Validator(SCHEMAS[schema], registry=REGISTRY).validate(value)
