"""What the servers of RK3588 boards speak besides `/v1/chat/completions`."""

from collections.abc import Iterable, Iterator

from localgemma_cli.backends.remote.dialect import (
    GEMMA_STOPS,
    Ask,
    Dialect,
    Piece,
    ServerError,
    count,
    flattened,
    options,
    plain,
    server_words,
)
from localgemma_cli.backends.remote.framing import lines, objects
from localgemma_cli.conversation import folded
from localgemma_cli.events import Usage


def chat_body(ask: Ask) -> dict[str, object]:
    """`/api/chat`; rkllama calls the longest answer `max_new_tokens`, Ollama `num_predict`."""
    said = options(ask.sampling, "repeat_penalty", "max_new_tokens", "num_predict")
    return {"model": ask.model, "messages": plain(ask.messages), "stream": True, "options": said}


def chat_pieces(chunks: Iterable[bytes]) -> Iterator[Piece]:
    """A JSON object per line; the one that is `done` has the counts."""
    for value in objects(lines(chunks)):
        if words := server_words(value):
            raise ServerError(words)
        message = value.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        text = text if isinstance(text, str) else ""
        if not value.get("done"):
            yield Piece(text)
            continue
        reason = value.get("done_reason")
        counts = Usage(count(value.get("prompt_eval_count")), None, count(value.get("eval_count")))
        yield Piece(text, reason if isinstance(reason, str) else "stop", counts)
        return


def old_body(ask: Ask) -> dict[str, object]:
    """`/rkllm_chat` takes no sampling options."""
    return {"model": ask.model or "rkllm", "messages": plain(ask.messages), "stream": True}


def old_pieces(chunks: Iterable[bytes]) -> Iterator[Piece]:
    """Objects with a blank line between; each repeats all `choices` so far and adds to them.

    The last of them need not say that it is: the end of the body is the end of the answer.
    """
    seen = 0
    for value in objects(lines(chunks)):
        if words := server_words(value):
            raise ServerError(words)
        choices = value.get("choices")
        choices = choices if isinstance(choices, list) else []
        fresh = [choice.get("delta") or choice.get("message") or {} for choice in choices[seen:]]
        seen = len(choices)
        yield Piece("".join(str(said.get("content") or "") for said in fresh))
    yield Piece(finish="stop")


RKLLAMA_API = Dialect(
    "rkllama-api",
    "rkllama's /api/chat, which drops a system message: it is folded into the first turn",
    "/api/chat",
    "/api/tags",
    folded,
    chat_body,
    chat_pieces,
    GEMMA_STOPS,
)
RKLLM_OLD = Dialect(
    "rkllm-1.2",
    "Rockchip's server 1.2, which reads one message and takes no sampling options",
    "/rkllm_chat",
    None,
    flattened,
    old_body,
    old_pieces,
    GEMMA_STOPS,
)
