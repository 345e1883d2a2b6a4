"""Read what an answer must be: from --schema, --choice and --regex."""

import csv
import json
from collections.abc import Sequence

from localgemma_cli.constraint import Choices, Constraint, JsonSchema, Regex
from localgemma_cli.documents import Unreadable, parse_bounded_json
from localgemma_cli.errors import UsageError
from localgemma_cli.prompts.grammar import require_supported
from localgemma_cli.text import read_text


def read_constraint(schema: str | None, choice: str | None, regex: str | None) -> Constraint | None:
    """The constraint of at most one option. UsageError, and NotFoundError for a file."""
    options = {"--schema": schema, "--choice": choice, "--regex": regex}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} cannot be used together.", "Remove one of them.")
    if schema is not None:
        return read_schema(schema)
    if choice is not None:
        return parse_choices(choice)
    return None if regex is None else parse_regex(regex)


def read_schema(text: str) -> JsonSchema:
    """`text`: JSON that begins with {, or a file's path."""
    inline = text.lstrip().startswith("{")
    name = "--schema" if inline else f"--schema {text}"
    try:
        value = parse_bounded_json((text if inline else read_text(text, pipes=True)).encode())
    except Unreadable as error:
        raise UsageError(f"{name} cannot be used: {error}.", "Correct the JSON.") from None
    return schema_from(value, name)


def schema_from(value: object, name: str) -> JsonSchema:
    """A schema that is JSON already; `name`: what the user calls it, for errors."""
    constraint = JsonSchema(json.dumps(value, ensure_ascii=False))
    require_supported(constraint, name)
    return constraint


def parse_choices(text: str) -> Choices:
    """Choices separated by commas; one in quotation marks can contain a comma."""
    (row,) = csv.reader([" ".join(text.splitlines())], skipinitialspace=True) if text.strip() else ([],)
    return choices_from([each.strip() for each in row], "--choice")


def choices_from(choices: Sequence[str], name: str) -> Choices:
    """Choices that are a list already; `name`: what the user calls it, for errors."""
    if len(choices) < 2 or not all(choices):
        raise UsageError(f"{name} needs two or more words.", "Separate them by commas: --choice yes,no")
    twice = next((each for at, each in enumerate(choices) if each in choices[:at]), None)
    if twice is not None:
        raise UsageError(f"{name} has {twice} twice.", "Remove one of them.")
    return Choices(tuple(choices))


def parse_regex(pattern: str, name: str = "--regex") -> Regex:
    constraint = Regex(pattern)
    require_supported(constraint, name)
    return constraint
