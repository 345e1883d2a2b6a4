"""`--endpoint`: the API key goes to its own server only, and is never shown."""

import json

import pytest
from support.chat_server import (
    PARTIAL,
    ChatServer,
    Reply,
    delta,
    ending,
    error,
    event,
    page,
)
from support.program import Program

SECRET = "sk-very-secret"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["models", "chat"])
def test_a_refused_key_names_the_variable_and_never_the_key(
    program: Program, server: ChatServer, status: int, where: str
) -> None:
    refusal = error(f"Incorrect API key provided: {SECRET}", status)
    if where == "models":
        server.pages["/v1/models"] = refusal
    server.answers(refusal)
    keyed = program.with_environment(LOCALGEMMA_API_KEY=SECRET)
    done = keyed("--endpoint", server.url, "-v", "Hello", stdin="")
    assert done.returncode == 7
    assert "LOCALGEMMA_API_KEY" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert server.requests[-1].headers["authorization"] == f"Bearer {SECRET}"
    assert "requires an API key" in program("--endpoint", server.url, "Hello", stdin="").stderr


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("words", [{"error": f"no key {SECRET}"}, f"plain {SECRET}"], ids=["error", "text"])
def test_a_key_that_the_server_repeats_is_not_shown(
    program: Program, server: ChatServer, words: object, begun: bool
) -> None:
    server.answers(Reply((*(PARTIAL if begun else ()), event(words))))
    keyed = program.with_environment(LOCALGEMMA_API_KEY=SECRET)
    done = keyed("--endpoint", server.url, "--verbose", "Hello", stdin="")
    assert done.returncode == 7
    assert "Traceback" in done.stderr
    assert "***" in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_a_key_in_an_answer_or_in_other_letters_is_not_shown(program: Program, server: ChatServer) -> None:
    halves = (event(delta(f"it is {SECRET[:7]}")), event(delta(f"{SECRET[7:]}!")), ending())
    shouted = event({"error": {"message": SECRET.upper(), "type": " ".join(SECRET)}})
    server.pages["/v1/models"] = page({"data": [{"id": f"m-{SECRET}"}, {"id": "m", "owned_by": SECRET}]})
    server.answers(Reply(halves), Reply((shouted,)), page({}, 302, Location=f"http://h/?{SECRET.upper()}"))
    keyed = program.with_environment(LOCALGEMMA_API_KEY=SECRET)
    answer = json.loads(keyed("--endpoint", server.url, "--json", "Hello", stdin="").stdout)
    assert (answer["response"], answer["model"]) == ("it is ***!", "m")
    for _ in range(2):
        done = keyed("--endpoint", server.url, "-v", "Hello", stdin="")
        assert done.returncode == 7
        assert "not shown: it repeats the secret key" in done.stderr
        flat = done.stderr.lower().replace(" ", "")
        assert SECRET not in flat


def test_a_key_goes_to_no_other_server(program: Program, server: ChatServer) -> None:
    with ChatServer() as other:
        server.pages["/v1/models"] = page({}, 302, Location=f"{other.url}/v1/models")
        server.answers(page({}, 307, Location=f"{other.url}/v1/chat/completions"))
        keyed = program.with_environment(LOCALGEMMA_API_KEY=SECRET)
        done = keyed("--endpoint", server.url, "Hello", stdin="")
        assert done.returncode == 7
        assert other.url in done.stderr
        assert other.requests == []
