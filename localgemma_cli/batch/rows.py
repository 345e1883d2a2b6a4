"""From a record of the input to a row: what is asked of the model, or the error that the row gets."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache

from localgemma_cli.backends.many import Request
from localgemma_cli.batch.records import Record
from localgemma_cli.batch.unique_ids import UniqueIds
from localgemma_cli.chat.constraint_input import choices_from, parse_regex, schema_from
from localgemma_cli.constraint import Constraint, JsonSchema
from localgemma_cli.conversation import Message
from localgemma_cli.documents import format_value, intended_field, is_number
from localgemma_cli.errors import UsageError
from localgemma_cli.prompt_template import PromptTemplate
from localgemma_cli.sampling import Mode, Sampling, system_for, validate_sampling
from localgemma_cli.text import normalize

RowId = str | int
_SAMPLING = tuple(each.name for each in fields(Sampling) if each.name != "constraint")
_WHOLE = ("top_k", "seed", "max_new_tokens", "logprobs")
_TYPED = ("schema", "choice", "regex")
_KNOWN = ("id", "prompt", "messages", "system", *_SAMPLING, *_TYPED)
_ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Row:
    """One row, the `index`-th from 0: its request, or the error that it gets instead of an answer.

    `digest` changes with what is asked; `end` is its end in the input, in bytes.
    """

    index: int
    id: RowId | None
    digest: str
    end: int
    request: Request | None = None
    error: UsageError | None = None


@dataclass(frozen=True)
class RowDefaults:
    """What the command line sets for every row.

    With `template`, a row's fields are data for it, except `id`. `is_text`: CSV has no numbers, only text.
    """

    template: PromptTemplate | None
    system: str | None
    mode: Mode
    sampling: Sampling
    is_text: bool = False


def make_rows(records: Iterable[Record], defaults: RowDefaults) -> Iterator[Row]:
    """A row for every record; one whose id another row has gets an error."""
    ids = UniqueIds()
    for index, record in enumerate(records):
        id: RowId | None = None
        try:
            if record.error is not None:
                raise record.error
            values = {key: value for key, value in (record.fields or {}).items() if value is not None}
            id = _parse_id(values)
            request = _parse_request(values, defaults)
            if id is not None and (other := ids.add(id, index)) is not None:
                raise UsageError(
                    f"Row {other} has the same id: {format_value(id)}.", "Give each row its own."
                )
        except UsageError as error:
            yield Row(index, id, _digest(record.source.hex()), record.end, error=error)
        else:
            yield Row(index, id, _digest(_described(id, request)), record.end, request)


def _parse_id(values: Mapping[str, object]) -> RowId | None:
    id = values.get("id")
    if id is None or (isinstance(id, str | int) and not isinstance(id, bool)):
        return id
    raise _wrong("id", "text or a whole number", id)


def _parse_request(values: Mapping[str, object], defaults: RowDefaults) -> Request:
    if defaults.template is not None:
        prompt = _not_empty("prompt", defaults.template.fill(values))
        return _messages(defaults.system, [Message("user", prompt)], defaults), defaults.sampling
    if defaults.is_text:
        values = {key: _parse_cell(key, str(value)) for key, value in values.items() if value != ""}
    _refuse_misspelled(values)
    system = _text("system", values["system"]) if "system" in values else None
    turns = _parse_turns(values)
    if turns[0].role == "system":
        if system is not None:
            raise UsageError("The row has two system texts: system and in messages.", "Remove one of them.")
        system, turns = turns[0].content, turns[1:]
    messages = _messages(defaults.system if system is None else system, turns, defaults)
    return messages, _parse_sampling(values, defaults.sampling)


def _messages(system: str | None, turns: list[Message], defaults: RowDefaults) -> tuple[Message, ...]:
    system = system_for(defaults.mode, system)
    return (*([Message("system", system)] if system else []), *turns)


def _parse_turns(values: Mapping[str, object]) -> list[Message]:
    """The row's messages, at least one; a system text may be the first."""
    if ("prompt" in values) == ("messages" in values):
        have = "both prompt and messages" if "prompt" in values else "neither prompt nor messages"
        raise UsageError(f"The row has {have}.", 'Write for example {"prompt": "Why is the sky blue?"}.')
    if "prompt" in values:
        return [Message("user", _not_empty("prompt", _text("prompt", values["prompt"])))]
    listed = values["messages"]
    if not isinstance(listed, list) or not listed:
        raise _wrong("messages", "a list of messages", listed)
    turns = [_parse_message(n, each) for n, each in enumerate(listed)]
    asked = turns[1:] if turns[0].role == "system" else turns
    if not asked or any(each.role != _ROLES[n % 2] for n, each in enumerate(asked)) or len(asked) % 2 == 0:
        raise UsageError(
            "The roles of messages must alternate between user and assistant, and end with user.",
            "A system message may come first.",
        )
    return turns


def _parse_message(place: int, value: object) -> Message:
    name = f"messages[{place}]"
    if not isinstance(value, dict):
        raise _wrong(name, "an object with role and content", value)
    role = value.get("role")
    if role not in (*_ROLES, "system"):
        raise _wrong(f"{name}.role", "user, assistant or system", role)
    content = _text(f"{name}.content", value.get("content"))
    return Message(role, _not_empty(f"{name}.content", content) if role == "user" else content)


def _parse_sampling(values: Mapping[str, object], defaults: Sampling) -> Sampling:
    own = {name: values[name] for name in _SAMPLING if name in values}
    for name, value in own.items():
        if not is_number(value) or (name in _WHOLE and not isinstance(value, int)):
            raise _wrong(name, "a whole number" if name in _WHOLE else "a number", value)
    sampling = validate_sampling(replace(defaults, **own), "") if own else defaults  # type: ignore[arg-type]
    constraint = _parse_constraint(values)
    return replace(sampling, constraint=constraint) if constraint else sampling


def _parse_constraint(values: Mapping[str, object]) -> Constraint | None:
    given = [name for name in _TYPED if name in values]
    if len(given) > 1:
        raise UsageError(f"The row has both {given[0]} and {given[1]}.", "Remove one of them.")
    match given:
        case ["schema"]:
            schema = values["schema"]
            if not isinstance(schema, dict):
                raise _wrong("schema", "an object", schema)
            return _read_schema(json.dumps(schema, ensure_ascii=False))
        case ["choice"]:
            choices = values["choice"]
            if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
                raise _wrong("choice", "a list of texts", choices)
            return choices_from(choices, "choice")
        case ["regex"]:
            return parse_regex(_text("regex", values["regex"]), "regex")
    return None


@lru_cache(maxsize=64)  # most rows have the same one
def _read_schema(text: str) -> JsonSchema:
    return schema_from(json.loads(text), "schema")


def _parse_cell(column: str, text: str) -> object:
    """A cell of CSV: the sampling parameters are numbers."""
    if column in _SAMPLING:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                pass
    return text


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "text", value)
    return normalize(value)


def _not_empty(name: str, text: str) -> str:
    if not text.strip():
        raise UsageError(f"{name} is empty.", "Write what to answer.")
    return normalize(text)


def _wrong(name: str, allowed: str, value: object) -> UsageError:
    return UsageError(f"{name} must be {allowed} (got {format_value(value)}).", "Correct the row.")


def _refuse_misspelled(values: Mapping[str, object]) -> None:
    """UsageError for an unknown field that resembles a known one; others are the user's own."""
    for name in values:
        if intended := intended_field(name, _KNOWN):
            raise UsageError(f"Unknown field {format_value(name)}.", f"Did you mean {intended}?")


def _described(id: RowId | None, request: Request) -> str:
    messages, sampling = request
    parameters = {name: value for name, value in asdict(sampling).items() if value is not None}
    return json.dumps([id, [[each.role, each.content] for each in messages], parameters])


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
