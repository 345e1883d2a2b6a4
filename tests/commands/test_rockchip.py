"""The servers of RK3588 boards: found by asking, given what they read, stopped on our side."""

import json

import pytest
from support import boards
from support.chat_server import ChatServer
from support.program import Program

from localgemma_cli.backends.http.backend import HttpBackend, connect
from localgemma_cli.backends.http.endpoint import parse_endpoint
from localgemma_cli.chat.turn import TurnSettings, run_turn
from localgemma_cli.conversation import Conversation
from localgemma_cli.render.base import Answer
from localgemma_cli.sampling import OnOverflow, Sampling

END = ("<end_of", "_turn>", "what nobody may see")


@pytest.fixture
def server():
    with ChatServer() as running:
        yield running


class Unseen:
    def delta(self, text: str) -> None: ...
    def finish(self, answer: Answer) -> None: ...
    def abort(self) -> None: ...


def talk(server: ChatServer, dialect: str = "auto") -> tuple[HttpBackend, list[str]]:
    """A system text and three questions; what the server heard at the last of them."""
    from threading import Event

    endpoint = parse_endpoint(server.url, dialect=dialect, environ={})
    said: list[str] = []
    backend = connect(endpoint, said.append, said.append)
    conversation = Conversation("Answer in one word.")
    settings = TurnSettings(Sampling(), OnOverflow.TRIM, lambda dropped, how: None)
    for question in ("I am Ada.", "I am 36.", "Who am I?"):
        conversation, answer = run_turn(backend, conversation, question, settings, Unseen(), Event())
        assert answer.finished.finish_reason == "stop"
    return backend, [answer.text, *said]


@pytest.mark.parametrize("dialect", ["auto", "rkllama", "rkllama-api"])
def test_rkllama_sees_the_system_text_in_the_first_turn(server: ChatServer, dialect: str) -> None:
    boards.rkllama(server, *END)
    backend, (text, *said) = talk(server, dialect)
    seen = json.loads(text.removeprefix("heard "))
    assert [message["role"] for message in seen] == ["user", "assistant", "user", "assistant", "user"]
    assert seen[0]["content"] == "Answer in one word.\n\nI am Ada."
    assert seen[-1]["content"] == "Who am I?"
    assert backend.model == "gemma2:2b"
    assert {post.path for post in server.posts} == {
        "/api/chat" if dialect == "rkllama-api" else "/v1/chat/completions"
    }
    assert any("rkllama" in line for line in said)


def test_an_older_rkllama_without_openai_s_api_is_found_as_well(server: ChatServer) -> None:
    boards.rkllama(server)
    del server.pages["/v1/models"]
    assert talk(server)[0].model == "gemma2:2b"
    assert server.posts[-1].path == "/api/chat"


@pytest.mark.parametrize("version", ["new", "old"])
def test_rockchip_s_servers_are_told_everything_in_one_message(server: ChatServer, version: str) -> None:
    (boards.rkllm_new if version == "new" else boards.rkllm_old)(server, "".join(END))
    _, (text, *said) = talk(server)
    for part in ("Answer in one word.", "I am Ada.", "I am 36.", "Who am I?"):
        assert text.count(part) >= 1
    assert text.endswith("Who am I?")
    assert [len(post.body["messages"]) for post in server.posts] == [1, 1, 1]
    assert any("Rockchip" in line for line in said)


def test_rockchip_s_own_name_of_the_repetition_penalty(program: Program, server: ChatServer) -> None:
    boards.rkllm_new(server)
    program("--endpoint", server.url, "--repetition-penalty", "1.2", "Hi", stdin="")
    assert server.posts[0].body["repeat_penalty"] == 1.2


def test_what_was_found_is_said_with_verbose(program: Program, server: ChatServer) -> None:
    boards.rkllm_old(server)
    done = program("--endpoint", server.url, "-v", "Hi", stdin="")
    assert (done.returncode, done.stdout) == (0, "heard Hi\n")
    assert "Rockchip's server 1.2" in done.stderr
    assert program("--endpoint", server.url, "Hi", stdin="").stderr == ""


def test_an_answer_cut_in_an_object_is_marked(program: Program, server: ChatServer) -> None:
    boards.rkllm_old(server, "tail", cut=True)
    done = program("--endpoint", server.url, "--json", "Hi", stdin="")
    assert done.returncode == 7
    assert json.loads(done.stdout)["response"] == "heard Hi"


def test_the_dialect_can_be_said_and_then_nothing_is_asked(program: Program, server: ChatServer) -> None:
    boards.rkllm_old(server)
    program("--endpoint", f"{server.url}/rkllm_chat", "Hi", stdin="")
    program("--endpoint", server.url, "--endpoint-dialect", "rkllm-1.2", "Hi", stdin="")
    assert [request.method for request in server.requests] == ["POST", "POST"]


def test_a_busy_board_is_asked_again(program: Program, server: ChatServer) -> None:
    from support.chat_server import page

    boards.rkllm_old(server)
    busy = page({"status": "error", "message": "RKLLM_Server is busy!"}, 503)
    server._replies = [busy, *server._replies]
    done = program("--endpoint", server.url, "Hi", stdin="")
    assert (done.returncode, done.stdout) == (0, "heard Hi\n")
    assert "RKLLM_Server is busy!" in done.stderr
