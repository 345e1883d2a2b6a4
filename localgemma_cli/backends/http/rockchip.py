"""What the servers of RK3588 boards speak besides `/v1/chat/completions`."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from localgemma_cli.backends.http.dialect import (
    GEMMA_STOPS,
    Ask,
    Dialect,
    Piece,
    ServerError,
    as_list,
    as_mapping,
    count,
    finish_of,
    flattened,
    options,
    plain,
    server_words,
    text_of,
    thinking_of,
)
from localgemma_cli.backends.http.sse import lines, objects
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
        message = as_mapping(value.get("message"))
        piece = Piece(text_of(message.get("content")), thinking=thinking_of(message))
        if not value.get("done"):
            yield piece
            continue
        counts = Usage(count(value.get("prompt_eval_count")), None, count(value.get("eval_count")))
        yield replace(piece, finish=finish_of(value.get("done_reason")) or "stop", usage=counts)
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
        choices = as_list(value.get("choices"))
        fresh = [as_mapping(each) for each in choices[seen:]]
        said = [as_mapping(each.get("delta")) or as_mapping(each.get("message")) for each in fresh]
        seen = max(seen, len(choices))
        text = "".join(text_of(each.get("content")) for each in said)
        yield Piece(text, thinking="".join(map(thinking_of, said)))
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
