"""Addresses, and what is told of a server's failures."""

import time
from email.utils import formatdate

import pytest

from localgemma_cli.backends.http.dialect import flatten_conversation
from localgemma_cli.backends.http.endpoint import parse_endpoint
from localgemma_cli.backends.http.server_errors import is_overflow_text, quote, retry_after
from localgemma_cli.conversation import Message, fold_system
from localgemma_cli.errors import UsageError


@pytest.mark.parametrize(
    ("url", "root", "base"),
    [
        ("http://h:8000", "http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/v1", "http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/v1/", "http://h:8000", "http://h:8000/v1"),
        ("https://h/proxy/v1/chat/completions", "https://h/proxy", "https://h/proxy/v1"),
        ("https://h/v1beta/openai/chat/completions", "https://h/v1beta/openai", "https://h/v1beta/openai"),
        ("http://[::1]:8000/v1", "http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_every_form_of_an_address(url: str, root: str, base: str) -> None:
    endpoint = parse_endpoint(url, environ={})
    assert (endpoint.root, endpoint.base, endpoint.dialect) == (root, base, "auto")


def test_an_address_of_the_resource_says_the_dialect() -> None:
    assert parse_endpoint("http://board:8080/api/chat", environ={}).dialect == "rkllama-api"
    assert parse_endpoint("http://board:8080/rkllm_chat", environ={}).dialect == "rkllm-1.2"
    assert parse_endpoint("http://board:8080/rkllm_chat", environ={}, dialect="rkllm").dialect == "rkllm"


@pytest.mark.parametrize(
    "url",
    ["", "board:8080", "ftp://h", "http://", "http://h:port", "http://a b", "http://h/?q=1", "http://[::1"],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        parse_endpoint(url, environ={})


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        parse_endpoint("http://user:secret@h", environ={})
    assert "secret" not in caught.value.message + caught.value.hint


def test_the_key_is_in_no_representation() -> None:
    endpoint = parse_endpoint("http://h", environ={"LOCALGEMMA_API_KEY": " sk-secret\n"})
    assert endpoint.key == "sk-secret"
    assert "secret" not in repr(endpoint)
    assert quote("Incorrect key: sk-secret\x1b[31m", endpoint.key) == "Incorrect key: ***␛[31m"
    with pytest.raises(UsageError) as caught:
        parse_endpoint("http://h", environ={"LOCALGEMMA_API_KEY": "sk\nsecret"})
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "words",
    [  # of OpenAI and vLLM, llama.cpp, SGLang, TGI
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens",
        "context_length_exceeded",
        "the request exceeds the available context size. try increasing the context size",
        "exceed_context_size_error",
        "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1235",
        "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000",
    ],
)
def test_how_servers_say_that_the_context_is_full(words: str) -> None:
    assert is_overflow_text(words)


@pytest.mark.parametrize("words", ["System role not supported", "Unexpected fields in it: {'top_k'}"])
def test_what_is_no_overflow(words: str) -> None:
    assert not is_overflow_text(words)


def test_both_forms_of_retry_after() -> None:
    assert retry_after({"retry-after": "7"}) == 7
    at = int(time.time()) + 20  # the form has no smaller parts of a second
    most = at - time.time()
    seconds = retry_after({"retry-after": formatdate(at)})
    assert seconds is not None
    assert at - time.time() <= seconds <= most
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


TALK = (
    Message("system", "Be brief."),
    Message("user", "I am Ada."),
    Message("assistant", "Hello Ada."),
    Message("user", "Who am I?"),
)


def test_folding_puts_the_system_text_once_before_the_first_turn() -> None:
    assert fold_system(TALK) == [Message("user", "Be brief.\n\nI am Ada."), *TALK[2:]]
    assert fold_system(TALK[1:]) == TALK[1:]


def test_flattening_tells_everything_in_one_message() -> None:
    (told,) = flatten_conversation(TALK)
    assert told.role == "user"
    positions = [told.content.index(message.content) for message in TALK]
    assert positions == sorted(positions)
    assert flatten_conversation([TALK[1]]) == [TALK[1]]
    assert flatten_conversation(TALK[:2]) == [Message("user", "Be brief.\n\nI am Ada.")]
