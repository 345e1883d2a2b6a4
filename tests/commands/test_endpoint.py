"""`--endpoint`: the real program against a server on loopback that does what servers do."""

import json
import math
import subprocess
import sys

import pytest
from support.chat_server import (
    HANG_UP,
    ChatServer,
    Reply,
    ask_server,
    delta,
    ending,
    error,
    event,
    page,
    sse,
)
from support.program import Program
from support.schemas import validate


def test_an_answer_as_from_a_local_model(program: Program, server: ChatServer) -> None:
    server.answers(sse("Grüß", "e, ", "世界\n"))
    done = ask_server(program, server, "-s", "Be kind.", "--max-new-tokens", "9", "--seed", "4", "Hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Grüße, 世界\n", "")
    (post,) = server.posts
    assert post.path == "/v1/chat/completions"
    assert post.body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
    ]
    sent = {name: post.body[name] for name in ("model", "temperature", "max_tokens", "seed", "stream")}
    assert sent == {"model": "gemma-test", "temperature": 0.7, "max_tokens": 9, "seed": 4, "stream": True}
    assert "authorization" not in post.headers


def test_a_name_of_models_toml_may_be_a_server(program: Program, server: ChatServer) -> None:
    (program.config / "models.toml").write_text(
        f'[board]\nendpoint = "{server.url}"\nrepository = "gemma-w8a8"\nsystem = "Be brief."\n'
    )
    server.answers(sse("Hi."))
    done = program("-m", "board", "Hello", stdin="")
    assert (done.returncode, done.stdout) == (0, "Hi.\n")
    assert server.posts[0].body["model"] == "gemma-w8a8"
    assert server.posts[0].body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_json_says_what_the_server_counted(program: Program, server: ChatServer) -> None:
    counts = {"prompt_tokens": 11, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    server.answers(sse("a", "b", finish="length", usage=counts))
    answer = json.loads(ask_server(program, server, "--json", "Hello").stdout)
    validate(answer, "answer")
    assert (answer["backend"], answer["model"]) == ("remote", "gemma-test")
    assert (answer["plan"], answer["preset"], answer["finish_reason"]) == (None, None, "length")
    assert answer["usage"] == {"prompt_tokens": 11, "cached_prompt_tokens": 4, "completion_tokens": 3}


def test_what_the_server_does_not_count_is_null(program: Program, server: ChatServer) -> None:
    server.answers(sse("a", "b"))
    answer = json.loads(ask_server(program, server, "--json", "Hello").stdout)
    validate(answer, "answer")
    assert set(answer["usage"].values()) == {None}
    assert answer["timing"]["decode_tokens_per_second"] is None


def test_jsonl_streams(program: Program, server: ChatServer) -> None:
    server.answers(sse("a", "b"))
    start, *deltas, end = map(json.loads, ask_server(program, server, "--jsonl", "Hello").stdout.splitlines())
    assert (start["event"], start["backend"]) == ("start", "remote")
    assert [each["text"] for each in deltas] == ["a", "b"]
    assert end.pop("event") == "end"
    validate(end, "answer")


def test_which_of_several_models_is_said_and_m_takes_another(program: Program, server: ChatServer) -> None:
    server.pages["/v1/models"] = page({"data": [{"id": "first"}, {"id": "second"}]})
    server.answers(sse("ok"))
    done = ask_server(program, server, "Hello")
    assert "2 models" in done.stderr
    assert "first" in done.stderr
    assert ask_server(program, server, "-m", "second", "Hello").stderr == ""
    assert [post.body["model"] for post in server.posts] == ["first", "second"]


def test_half_a_character_in_each_chunk(program: Program, server: ChatServer) -> None:
    text = "Ünïcödé 世界 🎈"
    stream = b"data: " + json.dumps(delta(text), ensure_ascii=False).encode() + b"\r\n\r\n" + ending()
    server.answers(Reply(tuple(stream[at : at + 1] for at in range(len(stream)))))
    done = ask_server(program, server, "Hello")
    assert (done.returncode, done.stdout) == (0, text + "\n")


def test_the_end_need_not_be_done(program: Program, server: ChatServer) -> None:
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    server.answers(Reply((b": hello\n\n", event(delta("whole")), event(last))))
    assert ask_server(program, server, "Hello").stdout == "whole\n"
    server.answers(Reply((event(delta("whole")), event("[DONE]"))))
    assert ask_server(program, server, "Hello").returncode == 0
    server.answers(Reply((event(delta("whole")), event(last), HANG_UP)))
    assert ask_server(program, server, "Hello").returncode == 0


def test_options_that_a_server_refuses_are_dropped_with_a_word(program: Program, server: ChatServer) -> None:
    refused = page({"detail": "Unexpected fields in the request: {'top_k', 'min_p'}"}, 422)
    server.answers(refused, sse("ok"))
    done = ask_server(program, server, "--top-k", "5", "--min-p", "0.1", "--top-p", "0.9", "Hello")
    assert (done.returncode, done.stdout) == (0, "ok\n")
    assert "top_k, min_p" in done.stderr
    assert {"top_k", "min_p", "top_p"} & set(server.posts[1].body) == {"top_p"}


@pytest.mark.parametrize(
    "refusal",
    [error("System role not supported"), page({}, 500), error("Conversation roles must alternate", 422)],
    ids=["400", "500", "422"],
)
def test_a_refused_system_message_is_folded(program: Program, server: ChatServer, refusal: Reply) -> None:
    server.answers(refusal, sse("ok"))
    done = ask_server(program, server, "-s", "Be kind.", "Hello")
    assert (done.returncode, done.stdout) == (0, "ok\n")
    assert "system message" in done.stderr
    assert server.posts[1].body["messages"] == [{"role": "user", "content": "Be kind.\n\nHello"}]


def test_what_the_model_thinks_is_not_its_answer(program: Program, server: ChatServer) -> None:
    said = [{"content": None, "reasoning_content": "Hm"}, {"content": "", "reasoning": [{"text": "Hm"}]}]
    thoughts = [event({"choices": [{"index": 0, "delta": each, "finish_reason": None}]}) for each in said]
    server.answers(Reply((*thoughts, event(delta("Yes.")), ending())))
    done = ask_server(program, server, "--session", "s", "Hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Yes.\n", "")
    start, *thinking, text, end = map(
        json.loads, ask_server(program, server, "--jsonl", "--session", "s", "Again").stdout.splitlines()
    )
    assert start["event"] == "start"
    assert thinking == [{"event": "thinking", "text": "Hm"}] * 2
    assert text == {"event": "delta", "text": "Yes."}
    assert (end.pop("event"), end["thinking"], end["response"]) == ("end", "HmHm", "Yes.")
    validate(end, "answer")
    assert [each["content"] for each in server.posts[-1].body["messages"]] == ["Hello", "Yes.", "Again"]


@pytest.mark.parametrize(
    "words",
    [
        ["--preset", "exact"],
        ["--dtype", "bf16"],
        ["--quantization", "nf4"],
        ["--device", "cpu"],
        ["--compile"],
    ],
    ids=" ".join,
)
def test_options_of_a_local_model_are_refused_by_name(program: Program, words: list[str]) -> None:
    done = program("--endpoint", "http://127.0.0.1:9", *words, "Hello", stdin="")
    assert done.returncode == 2
    assert words[0] in done.stderr


@pytest.mark.parametrize(
    "words",
    [["--endpoint", "board"], ["--endpoint", "http://h", "--endpoint-dialect", "klingon"]],
    ids=" ".join,
)
def test_bad_usage(program: Program, words: list[str]) -> None:
    done = program(*words, "Hello", stdin="")
    assert done.returncode == 2


def test_the_config_file_and_the_variable_name_a_server(program: Program, server: ChatServer) -> None:
    server.answers(sse("ok"))
    (program.config / "config.toml").write_text(f'endpoint = "{server.url}"\npreset = "exact"\n')
    assert program("Hello", stdin="").stdout == "ok\n"
    variable = program.with_environment(LOCALGEMMA_ENDPOINT="http://127.0.0.1:9", LOCALGEMMA_MODEL="demo")
    assert variable("--endpoint", server.url, "Hello", stdin="").stdout == "ok\n"
    assert [post.body["model"] for post in server.posts] == ["gemma-test"] * 2  # a local name stays at home


def test_nothing_heavy_is_imported_before_a_request_goes_out(program: Program, server: ChatServer) -> None:
    server.answers(sse("ok"))
    heavy = (
        "torch",
        "transformers",
        "bitsandbytes",
        "accelerate",
        "huggingface_hub",
        "prompt_toolkit",
        "numpy",
    )
    clock = (
        "import sys, resource\nused = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('SECONDS', used.ru_utime + used.ru_stime, file=sys.stderr)"
    )
    probe = (
        "import sys; from localgemma_cli.cli import run\n"
        "from localgemma_cli.environment import standard_streams\n"
        f"code = run(['--endpoint', {server.url!r}, 'hi'], standard_streams())\n"
        f"print('LOADED', sorted(set({heavy!r}) & set(sys.modules)), code, file=sys.stderr)\n"
    )
    env = {**program.env, "PYTHONDONTWRITEBYTECODE": ""}

    def seconds(code: str, said: str) -> float:
        """Of the processor."""
        done = subprocess.run(
            [sys.executable, "-c", code + clock],
            capture_output=True,
            text=True,
            env=env,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        assert said in done.stderr
        return float(done.stderr.rsplit("SECONDS", 1)[1])

    # the least of three by turns: other load on the machine only ever adds
    floor = "import typer, rich.console\n"
    rounds = [(seconds(probe, "LOADED [] 0"), seconds(floor, "")) for _ in range(3)]
    taken, least = map(min, zip(*rounds, strict=True))
    assert taken <= 5 * least


def test_a_proxy_does_not_stand_before_this_machine(program: Program, server: ChatServer) -> None:
    server.answers(sse("ok"))
    proxied = program.with_environment(http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")
    assert proxied("--endpoint", server.url, "Hello", stdin="").stdout == "ok\n"


def with_logprobs(text: str, logprobs: object) -> bytes:
    return event(delta(text, logprobs=logprobs))


def test_log_probabilities_are_the_server_s(program: Program, server: ChatServer) -> None:
    first = {"token": "H", "logprob": -0.25, "bytes": [72], "top_logprobs": [{"token": "h", "logprob": -2}]}
    second = {"token": "i", "logprob": -math.inf}
    chunks = [with_logprobs("H", {"content": [first]}), with_logprobs("i", {"content": [second]}), ending()]
    server.answers(Reply((*chunks,)))
    answer = json.loads(ask_server(program, server, "--json", "--logprobs", "1", "Hello").stdout)
    validate(answer, "answer")
    assert (server.posts[0].body["logprobs"], server.posts[0].body["top_logprobs"]) == (True, 1)
    one, two = answer["logprobs"]["content"]
    assert one == {
        **first,
        "id": None,
        "top_logprobs": [{"token": "h", "id": None, "bytes": None, "logprob": -2}],
    }
    assert (two["token"], two["logprob"], two["top_logprobs"]) == ("i", -9999, [])


@pytest.mark.parametrize("knows", [False, True])
def test_a_server_without_log_probabilities_still_answers(
    program: Program, server: ChatServer, knows: bool
) -> None:
    """One that ignores the fields, and one that refuses them."""
    refusals = [error("Unknown field: top_logprobs"), error("Unknown field: logprobs")]
    server.answers(*(refusals if knows else []), sse("Hi."))
    done = ask_server(program, server, "--json", "--logprobs", "1", "Hello")
    answer = json.loads(done.stdout)
    assert (answer["response"], "logprobs" in answer) == ("Hi.", False)
    assert done.stderr.endswith("[server reports no log-probabilities]\n")


def test_the_key_is_not_in_log_probabilities(program: Program, server: ChatServer) -> None:
    halves = [{"token": "sk-very-", "logprob": -1}, {"token": "secret-key", "logprob": -1}]
    server.answers(Reply((with_logprobs("Hi", {"content": halves}), ending())))
    keyed = program.with_environment(LOCALGEMMA_API_KEY="sk-very-secret-key")
    done = ask_server(keyed, server, "--json", "--logprobs", "0", "Hello")
    assert "secret-key" not in done.stdout + done.stderr
    assert json.loads(done.stdout)["response"] == "Hi"
