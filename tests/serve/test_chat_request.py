"""What a request may contain, and how an error in it is named."""

import json
from typing import Any

import pytest

from localgemma_cli.constraint import JsonSchema
from localgemma_cli.conversation import Message
from localgemma_cli.sampling import Sampling
from localgemma_cli.serve.api_error import ApiError
from localgemma_cli.serve.chat_request import Asked, parse_body, parse_chat, parse_text

USER = {"role": "user", "content": "Hi"}
DEFAULTS = Sampling(temperature=0.7, max_new_tokens=50)


def parsed(**fields: Any) -> Asked:
    return parse_chat(parse_body(json.dumps({"messages": [USER], **fields}).encode()), DEFAULTS)


def text_asked(**fields: Any) -> Asked:
    return parse_text(parse_body(json.dumps({"prompt": "Once", **fields}).encode()), Sampling())


def refused(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_chat(parse_body(body), DEFAULTS)
    assert caught.value.status == 400
    return caught.value


def test_the_defaults_are_the_server_s() -> None:
    assert parsed() == Asked(None, (Message("user", "Hi"),), DEFAULTS)
    assert parsed(temperature=None, stop=None, tools=[], n=1, stream_options=None) == parsed()


def test_sampling_by_its_names_in_the_api() -> None:
    values = {"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "repeat_penalty": 1.5, "seed": 7}
    expected = Sampling(0, 0.5, 3, 0.1, 1.5, 7, 9)
    assert parsed(**values, max_tokens=9).sampling == expected
    assert parsed(**values, max_tokens=1, max_completion_tokens=9).sampling == expected


def test_unknown_fields_are_ignored_and_misspelled_ones_are_not() -> None:
    assert parsed(metadata={"a": "b"}, store=True, num_ctx=5) == parsed()
    error = refused(json.dumps({"messages": [USER], "temprature": 1}).encode())
    assert (error.param, error.message) == (
        "temprature",
        "Unknown field 'temprature'. Did you mean temperature?",
    )


def test_the_comparison_of_unknown_fields_is_bounded() -> None:
    """Each is compared with every known one: a request with 200,000 of them held up all clients for 20 s."""
    many = {f"x{number}": 1 for number in range(100)}
    assert parsed(**many, temprature=1) == parsed()
    assert parsed(**{"temperature" * 20: 1}) == parsed()


def test_messages_of_every_form() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "system", "content": "One."},
        {"role": "developer", "content": "Two."},
        {"role": "user", "content": parts, "name": "Ann"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "tool_calls": None, "refusal": None},
        USER,
    ]
    assert parsed(messages=messages).messages == (
        Message("system", "One.\n\nTwo."),
        Message("user", "a\nb\n\nc"),
        Message("assistant", "d"),
        Message("user", "Hi"),
    )


def test_stop_strings() -> None:
    assert parsed(stop="a").stops == ("a",)
    assert parsed(stop=["a", "b"]).stops == ("a", "b")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": "Hi"}, "messages", "invalid_type"),
        ({"messages": ["Hi"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]", "invalid_type"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "invalid_type"),
        ({"messages": [{"role": ["user"], "content": ""}]}, "messages[0].role", "invalid_type"),
        ({"messages": [USER, {"role": "tool", "content": ""}]}, "messages[1].role", "unsupported_parameter"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages", "invalid_value"),
        ({"messages": [USER, {"role": "system", "content": "a"}]}, "messages", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls",
            "unsupported_parameter",
        ),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"top_p": 2}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "invalid_type"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"stop": [""]}, "stop", "invalid_type"),
        ({"stop": ["a"] * 17}, "stop", "invalid_type"),
        ({"stop": {}}, "stop", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
            "invalid_type",
        ),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"model": 5}, "model", "invalid_type"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
            "response_format.json_schema.schema",
            "invalid_type",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "robot"}}}},
            "response_format",
            "invalid_value",
        ),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    error = refused(json.dumps({"messages": [USER], **fields}).encode())
    assert (error.param, error.code) == (param, code)
    assert "--" not in error.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"messages": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b'{"seed": ' + b"9" * 5000 + b"}",
        rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
    ],
)
def test_a_body_that_is_no_json_object(body: bytes) -> None:
    assert refused(body).code == "invalid_json"


def test_a_text_to_be_continued() -> None:
    assert text_asked() == Asked(None, (Message("text", "Once"),), Sampling(max_new_tokens=16))
    assert text_asked(prompt=["Once"], max_tokens=3, best_of=1, echo=False).sampling.max_new_tokens == 3
    assert text_asked(logprobs=2).sampling.logprobs == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"suffix": "a"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_what_is_wrong_with_a_text_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        text_asked(**fields)
    assert caught.value.param == param


def test_log_probabilities() -> None:
    assert parsed(logprobs=True).sampling.logprobs == 0
    assert parsed(logprobs=True, top_logprobs=3).sampling.logprobs == 3
    assert parsed(logprobs=False).sampling.logprobs is None


def test_forms_of_an_answer() -> None:
    schema = {"type": "object", "properties": {"z": {}, "a": {"enum": ["ä"]}}}
    assert parsed(response_format={"type": "text"}).sampling.constraint is None
    assert parsed(response_format={"type": "json_object"}).sampling.constraint == JsonSchema(
        '{"type": "object"}'
    )
    for form in (
        {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        {"type": "json_schema", "schema": schema},  # llama-server's
        {"type": "json_object", "schema": schema},
        {"type": "json_object", "value": schema},  # Hugging Face's
    ):
        constraint = parsed(response_format=form).sampling.constraint
        assert constraint == JsonSchema(json.dumps(schema, ensure_ascii=False))
