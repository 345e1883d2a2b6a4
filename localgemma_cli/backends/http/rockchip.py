"""Two APIs of RK3588 boards besides the OpenAI one: rkllama's `/api/chat` and Rockchip's server 1.2."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from localgemma_cli.backends.http.dialect import (
    GEMMA_STOPS,
    ChatRequest,
    Dialect,
    Piece,
    ServerError,
    as_list,
    as_mapping,
    content_text,
    error_text,
    finish_reason_of,
    flatten_conversation,
    message_objects,
    sampling_fields,
    thinking_text,
    token_count,
)
from localgemma_cli.backends.http.sse import parse_objects, split_lines
from localgemma_cli.backends.http.structured import schema_of
from localgemma_cli.conversation import fold_system
from localgemma_cli.events import Usage


def rkllama_body(request: ChatRequest) -> dict[str, object]:
    """The JSON of a request to `/api/chat`.

    The token limit is `max_new_tokens` in rkllama and `num_predict` in Ollama.
    """
    constraint = request.sampling.constraint
    fields = sampling_fields(request.sampling, "repeat_penalty", "max_new_tokens", "num_predict")
    return {
        "model": request.model,
        "messages": message_objects(request.messages),
        "stream": True,
        **({} if constraint is None else {"format": schema_of(constraint)}),
        "options": fields,
    }


def read_rkllama_stream(chunks: Iterable[bytes]) -> Iterator[Piece]:
    """Read one JSON object per line; the one with `done` has the token counts."""
    for value in parse_objects(split_lines(chunks)):
        if error := error_text(value):
            raise ServerError(error)
        message = as_mapping(value.get("message"))
        piece = Piece(content_text(message.get("content")), thinking=thinking_text(message))
        if not value.get("done"):
            yield piece
            continue
        counts = Usage(
            token_count(value.get("prompt_eval_count")), None, token_count(value.get("eval_count"))
        )
        yield replace(piece, finish=finish_reason_of(value.get("done_reason")) or "stop", usage=counts)
        return


def rkllm_body(request: ChatRequest) -> dict[str, object]:
    """The JSON of a request to `/rkllm_chat`, which has no sampling options."""
    return {"model": request.model or "rkllm", "messages": message_objects(request.messages), "stream": True}


def read_rkllm_stream(chunks: Iterable[bytes]) -> Iterator[Piece]:
    """Read objects separated by blank lines; each repeats all `choices` so far and adds new ones.

    The last one may not be marked: the end of the body is the end of the answer.
    """
    seen = 0
    for value in parse_objects(split_lines(chunks)):
        if error := error_text(value):
            raise ServerError(error)
        choices = as_list(value.get("choices"))
        fresh = [as_mapping(each) for each in choices[seen:]]
        messages = [as_mapping(each.get("delta")) or as_mapping(each.get("message")) for each in fresh]
        seen = max(seen, len(choices))
        text = "".join(content_text(each.get("content")) for each in messages)
        yield Piece(text, thinking="".join(map(thinking_text, messages)))
    yield Piece(finish="stop")


RKLLAMA_API = Dialect(
    "rkllama-api",
    "rkllama's /api/chat; it ignores a system message, so the first user message starts with its text",
    "/api/chat",
    "/api/tags",
    fold_system,
    rkllama_body,
    read_rkllama_stream,
    GEMMA_STOPS,
)
RKLLM_1_2 = Dialect(
    "rkllm-1.2",
    "Rockchip's server 1.2; it reads one message and has no sampling options",
    "/rkllm_chat",
    None,
    flatten_conversation,
    rkllm_body,
    read_rkllm_stream,
    GEMMA_STOPS,
)
