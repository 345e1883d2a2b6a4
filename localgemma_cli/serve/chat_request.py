"""A request's JSON to what a backend is asked: messages, or a text, and sampling parameters.

Raises ApiError for what is wrong or not supported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

from localgemma_cli.chat.constraint_input import schema_from
from localgemma_cli.constraint import JsonSchema
from localgemma_cli.conversation import Message, Role
from localgemma_cli.documents import Unreadable, format_value, parse_json_object
from localgemma_cli.errors import UsageError
from localgemma_cli.sampling import Sampling, validate_sampling
from localgemma_cli.serve.api_error import invalid
from localgemma_cli.serve.request_fields import Fields

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_MOST_STOPS = 16
# Fields of `Sampling`, and their names in requests; of several names the first one that is set is used.
_SAMPLING: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "min_p": ("min_p",),
    "repetition_penalty": ("repetition_penalty", "repeat_penalty"),
    "seed": ("seed",),
    "max_new_tokens": ("max_completion_tokens", "max_tokens"),
}
_WHOLE = ("top_k", "seed", "max_new_tokens")
_SAMPLING_NAMES = tuple(name for names in _SAMPLING.values() for name in names)
_COMMON = (*_SAMPLING_NAMES, "model", "stop", "stream", "stream_options", "n", "logprobs", "user")
_CHAT = (*_COMMON, "messages", "response_format", "tools", "tool_choice", "functions", "top_logprobs")
_TEXT = (*_COMMON, "prompt", "suffix", "echo", "best_of")
_TEXT_TOKENS = 16  # of an answer, unless a request sets max_tokens: the API's own default
_MOST_LOGPROBS = 20
# What cannot be answered here, and the values with which it asks for nothing.
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "tools": (),
    "functions": (),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "logit_bias": (),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
}
_UNSUPPORTED_TEXT: Mapping[str, tuple[object, ...]] = {
    **_UNSUPPORTED,
    "suffix": (),
    "echo": (),
    "best_of": (1,),
}


@dataclass(frozen=True)
class Asked:
    """What a client asks for; `stops` are its own stop strings, in addition to the model's."""

    model: str | None
    messages: tuple[Message, ...]
    sampling: Sampling
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False


def parse_body(body: bytes) -> Fields:
    """The JSON object of a request."""
    try:
        return Fields(parse_json_object(body))
    except Unreadable as error:
        raise invalid(None, f"The request's body cannot be read: {error}.", "invalid_json") from None


def parse_chat(fields: Fields, defaults: Sampling) -> Asked:
    """A request to /v1/chat/completions; `defaults` for the sampling parameters that it does not set."""
    fields.refuse_misspelled(_CHAT)
    fields.refuse(_UNSUPPORTED)
    sampling = replace(
        _parse_sampling(fields, defaults), logprobs=_chat_logprobs(fields), constraint=_parse_format(fields)
    )
    return _asked(fields, _parse_messages(fields), sampling)


def parse_text(fields: Fields, defaults: Sampling) -> Asked:
    """A request to /v1/completions, whose prompt is plain text: control tokens in it are text, too."""
    fields.refuse_misspelled(_TEXT)
    fields.refuse(_UNSUPPORTED_TEXT)
    prompt = fields.raw("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str) or not prompt:
        raise fields.wrong("prompt", "one text that is not empty")
    sampling = replace(
        _parse_sampling(fields, replace(defaults, max_new_tokens=defaults.max_new_tokens or _TEXT_TOKENS)),
        logprobs=_count_of_logprobs(fields, "logprobs"),
    )
    return _asked(fields, (Message("text", prompt),), sampling)


def _asked(fields: Fields, messages: tuple[Message, ...], sampling: Sampling) -> Asked:
    return Asked(
        model=fields.text("model"),
        messages=messages,
        sampling=sampling,
        stops=_parse_stops(fields),
        stream=fields.switch("stream"),
        include_usage=_includes_usage(fields),
    )


def _chat_logprobs(fields: Fields) -> int | None:
    alternatives = _count_of_logprobs(fields, "top_logprobs")
    if fields.switch("logprobs"):
        return alternatives or 0
    if alternatives:
        raise invalid("top_logprobs", "top_logprobs needs logprobs: true.", "invalid_value")
    return None


def _count_of_logprobs(fields: Fields, field: str) -> int | None:
    count = fields.whole(field)
    if count is not None and not 0 <= count <= _MOST_LOGPROBS:
        raise invalid(
            field, f"{field} must be between 0 and {_MOST_LOGPROBS} (got {count}).", "invalid_value"
        )
    return count


def _parse_format(fields: Fields) -> JsonSchema | None:
    """What `response_format` makes of the answer: any text, any JSON object, or JSON of a schema."""
    asked = fields.inner("response_format")
    kind = asked and asked.raw("type")
    if asked is None or kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise asked.wrong("type", "text, json_object or json_schema")
    given, field = _find_schema(asked)
    schema = given.raw(field)
    if schema is None and kind == "json_object":
        return JsonSchema('{"type": "object"}')
    if not isinstance(schema, dict):
        raise invalid(given.name(field), f"{given.name(field)} must be a JSON Schema.", "invalid_type")
    try:
        return schema_from(schema, given.name(field))
    except UsageError as error:
        raise invalid("response_format", error.message, "invalid_value") from None


def _find_schema(asked: Fields) -> tuple[Fields, str]:
    """The place of the schema in `response_format`.

    OpenAI's is json_schema.schema; `schema` is llama-server's and others', `value` Hugging Face's.
    """
    for name in ("schema", "value"):
        if asked.raw(name) is not None:
            return asked, name
    return asked.inner("json_schema") or Fields({}, f"{asked.name('json_schema')}."), "schema"


def _parse_sampling(fields: Fields, defaults: Sampling) -> Sampling:
    sampling = defaults
    for field, names in _SAMPLING.items():
        read = fields.whole if field in _WHOLE else fields.number
        values = {name: read(name) for name in names if fields.raw(name) is not None}
        if not values:
            continue
        name, value = next(iter(values.items()))
        changed: dict[str, Any] = {field: value}
        sampling = replace(sampling, **changed)
        try:
            validate_sampling(sampling)
        except UsageError as error:
            raise invalid(
                name, error.message.replace(f"--{field.replace('_', '-')}", name), "invalid_value"
            ) from None
    return sampling


def _parse_stops(fields: Fields) -> tuple[str, ...]:
    value = fields.raw("stop")
    stops = [value] if isinstance(value, str) else fields.items("stop") or []
    if not all(isinstance(each, str) and each for each in stops) or len(stops) > _MOST_STOPS:
        raise fields.wrong(
            "stop", f"a string, or a list of at most {_MOST_STOPS} strings, none of them empty"
        )
    return tuple(stops)


def _includes_usage(fields: Fields) -> bool:
    options = fields.inner("stream_options")
    if options is None:
        return False
    if not fields.switch("stream"):
        raise invalid("stream_options", "stream_options needs stream: true.", "invalid_value")
    return options.switch("include_usage")


def _parse_messages(fields: Fields) -> tuple[Message, ...]:
    values = fields.items("messages")
    if not values:
        raise invalid("messages", "messages must be a list with at least one message.", "invalid_value")
    messages = [_parse_message(value, at) for at, value in enumerate(values)]
    merged = _merge_neighbours(messages)
    late = next((at for at, each in enumerate(merged) if at and each.role == "system"), None)
    if late is not None:
        raise invalid("messages", "A system message must come before all other messages.", "invalid_value")
    if all(each.role == "system" for each in merged):
        raise invalid("messages", "messages must have a user message.", "invalid_value")
    return tuple(merged)


def _parse_message(value: object, at: int) -> Message:
    path = f"messages[{at}]"
    if not isinstance(value, dict):
        raise invalid(path, f"{path} must be an object (got {format_value(value)}).", "invalid_type")
    fields = Fields(value, f"{path}.")
    role = fields.raw("role")
    if role in ("tool", "function"):
        raise invalid(f"{path}.role", "Tools are not supported.", "unsupported_parameter")
    if not isinstance(role, str) or role not in _ROLES:
        raise fields.wrong("role", f"one of {', '.join(_ROLES)}")
    fields.refuse({"tool_calls": (), "function_call": (), "audio": ()})
    return Message(_ROLES[role], _parse_content(fields))


def _parse_content(fields: Fields) -> str:
    """A message's text; the texts of several parts are joined by line breaks."""
    value = fields.raw("content")
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise fields.wrong("content", "a string or a list of text parts")
    return "\n".join(_parse_part(part, fields.name(f"content[{at}]")) for at, part in enumerate(value))


def _parse_part(part: object, path: str) -> str:
    if not isinstance(part, dict):
        raise invalid(path, f"{path} must be an object (got {format_value(part)}).", "invalid_type")
    fields = Fields(part, f"{path}.")
    kind = fields.raw("type")
    if kind != "text":
        raise invalid(
            fields.name("type"),
            f"Parts of type {format_value(kind)} are not supported, only text.",
            "unsupported_parameter",
        )
    text = fields.text("text")
    if text is None:
        raise fields.wrong("text", "a string")
    return text


def _merge_neighbours(messages: Sequence[Message]) -> list[Message]:
    """Join messages of the same role with a blank line: templates of Gemma want roles that alternate."""
    return [
        Message(role, "\n\n".join(each.content for each in same))
        for role, same in groupby(messages, key=attrgetter("role"))
    ]
