"""Programs that others have written, as clients of `localgemma serve`."""

import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from support.serving import ANSWER, ASK, Serving

QUESTION = ASK["messages"][0]["content"]  # type: ignore[index]


@pytest.fixture
def client(served: Serving) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **more: object):  # type: ignore[no-untyped-def]
    return client.chat.completions.create(model="demo", **{**ASK, **more})  # type: ignore[call-overload]


def test_openai_s_client_gets_a_whole_answer(client: openai.OpenAI) -> None:
    answer = ask(client)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        ANSWER,
        "stop",
    )
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens > 10


def test_openai_s_client_gets_a_stream_with_the_same_text(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(each.delta.content or "" for each in choices) == ANSWER
    assert choices[0].delta.role == "assistant"
    assert [each.finish_reason for each in choices if each.finish_reason] == ["stop"]
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.completion_tokens > 10
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_openai_s_client_knows_the_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=ASK["messages"])  # type: ignore[call-overload]
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as tools:
        ask(client, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    assert (tools.value.param, tools.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, messages=[{"role": "user", "content": "word " * 2000}])
    assert long.value.code == "context_length_exceeded"


def test_openai_s_client_lists_the_model(client: openai.OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"


def test_a_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    first, same, other = (
        ask(client, temperature=20, max_tokens=8, seed=seed).choices[0].message.content for seed in (1, 1, 2)
    )
    assert first == same != other


@pytest.mark.parametrize("streams", [True, False])
def test_llm_s_plugin_for_servers_like_openai_s(served: Serving, tmp_path: Path, streams: bool) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: here\n  model_name: demo\n  api_base: {served.url}\n"
    )
    words = ["-m", "here", "-o", "temperature", "0", *([] if streams else ["--no-stream"]), QUESTION]
    done = subprocess.run(
        [sys.executable, "-m", "llm", *words],
        env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.stdout, done.returncode) == (f"{ANSWER}\n", 0), done.stderr
