"""Constraints in requests to servers: the fields of each kind of server, and answers that are unwrapped."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import ChatServer, ask_server, error, page, sse
from support.program import Program

from localgemma_cli.backends.http.structured import openai_constraint, schema_of, unwrap
from localgemma_cli.constraint import Choices, JsonSchema, Regex

BITS = {"type": "object", "properties": {"bits": {"enum": [4, 8]}}, "required": ["bits"]}
WRAPPED = {"type": "object", "required": ["answer"], "additionalProperties": False}


def test_a_schema_is_a_response_format_and_strict_where_it_can_be() -> None:
    fields: Any = openai_constraint(JsonSchema(json.dumps(BITS)), "vllm")
    form = fields["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"] == {
        "name": "answer",
        "schema": {**BITS, "additionalProperties": False},
        "strict": True,
    }
    optional = JsonSchema(json.dumps({"properties": {"a": {}}}))
    sent: Any = openai_constraint(optional, "")["response_format"]
    assert sent["json_schema"]["strict"] is False
    assert openai_constraint(None, "") == {}


def test_choices_and_patterns_have_fields_of_their_own_or_are_json_with_one_property() -> None:
    assert openai_constraint(Choices(("a", "b")), "vllm") == {
        "structured_outputs": {"choice": ["a", "b"]},
        "guided_choice": ["a", "b"],
    }
    assert openai_constraint(Regex("a|b"), "vllm") == {
        "structured_outputs": {"regex": "a|b"},
        "guided_regex": "a|b",
    }
    choices = {"type": "string", "enum": ["a", "b"]}
    assert schema_of(Choices(("a", "b"))) == {**WRAPPED, "properties": {"answer": choices}}
    pattern = {"type": "string", "pattern": "^(?:a|b)$"}
    assert schema_of(Regex("a|b")) == {**WRAPPED, "properties": {"answer": pattern}}


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ('{"answer": "é\\n"}', "é\n"),
        ("yes", "yes"),
        ('{"answer": 3}', '{"answer": 3}'),
        ('{"answer": "ye', '{"answer": "ye'),
        ('["answer"]', '["answer"]'),
        ("[" * 10**5, "[" * 10**5),
    ],
)
def test_the_one_property_is_unwrapped(text: str, inner: str) -> None:
    assert unwrap(text) == inner


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        server.pages["/v1/models"] = page({"data": [{"id": "gemma-test", "owned_by": "someone"}]})
        yield server


def test_an_answer_is_checked_here_whatever_the_server_did(program: Program, server: ChatServer) -> None:
    schema = ("--schema", json.dumps(BITS))
    server.answers(sse('{"bits"', ":\n 8}\n"))
    done = ask_server(program, server, *schema, "How many?")
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"bits":\n 8}\n', "")
    server.answers(sse("```json\n", '{"bits": 8}', "\n```"))
    done = ask_server(program, server, *schema, "How many?")
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr.startswith(
        '```json\n{"bits": 8}\n```\nlocalgemma: The answer is not what it had to be: '
    )
    server.answers(sse('{"bits": 5}'))
    done = ask_server(program, server, *schema, "--json", "How many?")
    assert (done.returncode, done.stdout) == (8, "")
    assert "5 is not one of [4, 8] at /bits" in json.loads(done.stderr)["error"]["message"]
    server.answers(sse('{"bits": ', finish="length"))
    done = ask_server(program, server, *schema, "How many?")
    assert (done.returncode, done.stdout) == (8, "")


def test_a_choice_of_a_server_has_no_probabilities(program: Program, server: ChatServer) -> None:
    server.answers(sse('{"answer":', ' "no"}'))
    done = ask_server(program, server, "--choice", "yes,no", "--json", "Is it?")
    answer = json.loads(done.stdout)
    assert (answer["response"], answer["parsed"]) == ("no", "no")
    assert "choices" not in answer
    assert server.posts[-1].body["response_format"]["type"] == "json_schema"
    assert server.posts[-1].body["temperature"] == 0
    server.answers(sse("yes"))  # from a server that ignores the field
    assert ask_server(program, server, "--choice", "yes,no", "Is it?").stdout == "yes\n"


def test_a_refused_constraint_is_an_error_of_the_server(program: Program, server: ChatServer) -> None:
    server.answers(error("response_format is not supported"))
    done = ask_server(program, server, "--choice", "yes,no", "Is it?")
    assert (done.returncode, done.stdout) == (7, "")
    assert "response_format is not supported" in done.stderr


def test_ollama_s_own_api_has_a_format(program: Program) -> None:
    with ChatServer() as server:
        lines = json.dumps({"message": {"content": '{"answer": "no"}'}, "done": True, "done_reason": "stop"})
        server.answers(page(json.loads(lines)))
        done = ask_server(
            program, server, "--endpoint-dialect", "rkllama-api", "-m", "g", "--choice", "yes,no", "Is it?"
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "no\n", "")
        assert server.posts[-1].body["format"]["properties"] == {
            "answer": {"type": "string", "enum": ["yes", "no"]}
        }


def test_llama_cpp_s_own_server_keeps_to_a_choice_and_a_schema(program: Program, real_gguf: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = str(real_gguf), ["127.0.0.1"], port
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 512, 1, -1, False
    params.n_gpu_layers, params.cpuparams.n_threads, params.cpuparams_batch.n_threads = 0, 1, 1
    llama = xllamacpp.Server(params)
    words = ("--endpoint", f"http://127.0.0.1:{port}", "--no-save", "--temperature", "0")
    for option, value in (("--choice", "yes,no"), ("--schema", json.dumps(BITS))):
        done = program(*words, option, value, "Is water wet?")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert done.stdout.strip()
    del llama
