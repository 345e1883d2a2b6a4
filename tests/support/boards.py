"""Stand-ins for the servers of RK3588 boards, as their sources and documents describe them.

Each answers with what its model would have been given, so that a test sees what came through.
"""

import json
from typing import Any

from support.chat_server import ChatServer, Reply, Request, event, page


def rkllama(server: ChatServer, *tail: str) -> None:
    """Both dialects; the system message never reaches Gemma 2's template."""
    server.pages = {
        "/": page({"message": "Welcome to RKLLama with Ollama API compatibility!"}),
        "/v1/models": page({"object": "list", "data": [{"id": "gemma2:2b", "owned_by": "rkllama"}]}),
        "/api/tags": page({"models": [{"name": "gemma2:2b", "model": "gemma2:2b"}]}),
    }
    server.answers(lambda request: _rkllama_answer(request, tail))


def _rkllama_answer(request: Request, tail: tuple[str, ...]) -> Reply:
    seen = [message for message in request.body["messages"] if message["role"] != "system"]
    texts = ("heard ", json.dumps(seen), *tail)
    if request.path == "/v1/chat/completions":
        parts = [event(_chunk(text, role="assistant")) for text in texts]
        counts = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "tokens_per_second": 4.5}
        last = [event(_chunk("", "stop")), event({"choices": [], "usage": counts}), event("[DONE]")]
        return Reply((*parts, *last))
    assert request.path == "/api/chat"
    lines = [{"message": {"role": "assistant", "content": text}, "done": False} for text in texts]
    done = {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 7,
        "eval_count": 3,
    }
    return Reply(
        tuple(json.dumps(line).encode() + b"\n" for line in (*lines, done)), kind="application/x-ndjson"
    )


def rkllm_new(server: ChatServer, tail: str = "") -> None:
    """Version 1.3: OpenAI's form, a chunk per character, and only the last user message is read."""
    server.pages = {"/v1/models": page({"object": "list", "data": [{"id": "gemma2", "owned_by": "rkllm"}]})}

    def answer(request: Request) -> Reply:
        heard = [message["content"] for message in request.body["messages"] if message["role"] == "user"][-1]
        first = {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
        chunks = [event(_chunk(character)) for character in f"heard {heard}{tail}"]
        return Reply((event(first), *chunks, event(_chunk("", "stop")), event("[DONE]")))

    server.answers(answer)


def rkllm_old(server: ChatServer, tail: str = "", *, cut: bool = False) -> None:
    """Version 1.2: `/rkllm_chat` for POST only; every object repeats all choices; none says `stop`."""
    server.pages = {"/rkllm_chat": page({}, 405)}

    def answer(request: Request) -> Reply:
        assert request.path == "/rkllm_chat"
        heard = request.body["messages"][-1]["content"]
        whole: dict[str, Any] = {"id": "rkllm_chat", "choices": [], "usage": {"prompt_tokens": None}}
        parts = []
        for text in ("heard ", heard, *([tail] if tail else [])):
            said = {"role": "assistant", "content": text}
            whole["choices"].append({"index": 0, "delta": said, "logprobs": None, "finish_reason": None})
            parts.append(json.dumps(whole).encode() + b"\n\n")
        if cut:
            parts[-1] = parts[-1][: len(parts[-1]) // 2]
        return Reply(tuple(parts), kind="text/plain")

    server.answers(answer)


def _chunk(text: str, finish: str | None = None, **more: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text, **more}, "finish_reason": finish}]}
