"""Constraints as grammars of llguidance, which all local engines read, and what it does not support."""

import json
import re
from functools import lru_cache
from typing import Any

from localgemma_cli.constraint import Choices, Constraint, JsonSchema, Regex
from localgemma_cli.errors import UsageError
from localgemma_cli.prompts.json_schema import Place, children, largest_factor, pointer, tighten

_TOO_BIG = "too big"  # in what llguidance says of a grammar beyond its limits
_MOST_TRIES = 200  # to find the part of a schema that has a problem; each can take a second
_START = "%llguidance {}\nstart: "
# As `json.dumps`, on one line: with spaces at will, a small model can write them for ever.
_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_PLAIN = (
    (re.compile(r'Unimplemented keys: \["([^"]+)".*'), r"\1 is not supported"),
    (re.compile(r"Unknown format: (.*)"), r"the format \1 is not supported"),
    (re.compile(r"Expected f64 for '(\w+)', got (.*)"), r"\1 expects a number (got \2)"),
    (re.compile(r"Expected (.+) for '(\w+)', got (.*)"), r"\2 expects \1 (got \3)"),
    (re.compile(r"Invalid type: (.*)"), r"\1 is not a type"),
    (re.compile(r"oneOf constraints are not supported.*"), "oneOf is not supported if two of it can match"),
    (re.compile(r"Unsatisfiable schema: (.*)"), r"nothing can match: \1"),
    (re.compile(r"Resource '([^']*)' is not present.*"), r"\1 is not in the schema, and is not downloaded"),
    (re.compile(r"Pointer '([^']*)' does not exist"), r"there is no \1"),
    (re.compile(r".*\nerror: ([^\n]*).*", re.DOTALL), r"\1"),  # after a drawing of the pattern
    (re.compile(r".*lookarounds not supported yet.*"), "lookarounds are not supported"),
)


@lru_cache(maxsize=8)  # the rows of a batch have the same one
def grammar_of(constraint: Constraint) -> str:
    """The grammar in llguidance's Lark; the first line marks it as such for llama.cpp."""
    match constraint:
        case JsonSchema(schema):
            return _START + f"%json {json.dumps(_spaced(tighten(json.loads(schema))))}"
        case Choices(choices):
            return _START + " | ".join(map(json.dumps, choices))
        case Regex(pattern):
            return _START + "/" + re.sub(r"\\.|[/\n]", _escaped, pattern, flags=re.DOTALL) + "/"


def require_supported(constraint: Constraint, name: str) -> None:
    """UsageError for what llguidance cannot apply; `name`: what the user calls it, such as `--schema`."""
    if isinstance(constraint, JsonSchema) and (factor := largest_factor(json.loads(constraint.schema))):
        raise UsageError(
            f"{name} cannot be used: multipleOf has more than four significant digits ({factor}).",
            "Round it.",
        )
    why = _problem(grammar_of(constraint))
    if why is None:
        return
    if isinstance(constraint, JsonSchema):
        place, why = _locate(json.loads(constraint.schema), why)
        where = f", at {pointer(place)}" if place else ""
        raise UsageError(f"{name} cannot be used: {why}{where}.", "Change that part of the schema.")
    raise UsageError(f"{name} cannot be used: {why}.", "See docs.rs/regex for what is supported.")


def _escaped(part: re.Match[str]) -> str:
    """A slash or a line end of a regular expression as Lark takes them; other escapes stay."""
    return {"/": "\\/", "\n": "\\n", "\\\n": "\\n"}.get(part[0], part[0])


def _spaced(schema: Any) -> Any:
    """The schema with the white space that JSON may have; the user's own wish wins."""
    schema = schema if isinstance(schema, dict) else {"anyOf": [schema]}
    return {**schema, "x-guidance": {**_SPACES, **schema.get("x-guidance", {})}}


def _problem(grammar: str) -> str | None:
    from llguidance import LLMatcher

    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if not failed:
        return _dead_end(grammar)
    why = messages[0].split("failed to compile JSON schema: ", 1)[-1]
    why = re.sub(r"\n +\d+ \| .*", "", why, flags=re.DOTALL).strip()
    plain = (known.sub(text, why) for known, text in _PLAIN if known.fullmatch(why))
    return next(plain, " ".join(why.split())).rstrip(".")


def _dead_end(grammar: str) -> str | None:
    """Why no text can even begin, such as a definition that is only a reference to itself."""
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    matcher.compute_bitmask()
    return "nothing can match" if matcher.is_error() else None


def _locate(schema: Any, why: str) -> tuple[Place, str]:
    """The innermost schema that has the problem by itself, and the problem; less deep in a huge schema."""
    if _TOO_BIG in why:  # no part is to blame
        return (), why
    tries = iter(range(_MOST_TRIES))
    named = ("$defs", "definitions")
    definitions = {key: schema[key] for key in named if isinstance(schema, dict) and key in schema}
    place: Place = ()
    while True:
        for step, child in sorted(children(schema), key=lambda each: each[0][0] not in definitions):
            alone = {**definitions, **child} if isinstance(child, dict) and step[0] not in named else child
            if next(tries, None) is None:
                return place, why
            if _problem(grammar_of(JsonSchema(json.dumps(alone)))) == why:
                place, schema = (*place, *step), child
                break
        else:
            return place, why
