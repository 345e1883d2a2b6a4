"""The OpenAI API, `/v1/chat/completions`: most servers, and two of the servers of RK3588 boards."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

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
    unchanged,
)
from localgemma_cli.backends.http.sse import parse_events, parse_message, read_whole
from localgemma_cli.backends.http.structured import openai_constraint
from localgemma_cli.conversation import fold_system
from localgemma_cli.events import TokenLogprob, Usage
from localgemma_cli.text import repair_surrogates

_BOM = b"\xef\xbb\xbf"

# Request fields that can be left out if a server does not support them.
OPTIONAL_FIELDS = (
    "stream_options",
    "top_k",
    "min_p",
    "repetition_penalty",
    "repeat_penalty",
    "seed",
    "top_p",
    "max_tokens",
    "temperature",
    "top_logprobs",
    "logprobs",
)


def openai_body(request: ChatRequest) -> dict[str, object]:
    model = {} if request.model is None else {"model": request.model}
    continues = request.messages[-1].role == "assistant"
    return {
        "messages": message_objects(request.messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        **model,
        **({"continue_final_message": True, "add_generation_prompt": False} if continues else {}),
        **sampling_fields(request.sampling, request.penalty_name, "max_tokens"),
        **openai_constraint(request.sampling.constraint, request.owner),
        **_logprobs_fields(request.sampling.logprobs),
    }


def _logprobs_fields(wanted: int | None) -> dict[str, object]:
    return {} if wanted is None else {"logprobs": True, "top_logprobs": wanted}


def read_openai_stream(chunks: Iterable[bytes]) -> Iterator[Piece]:
    """Read an answer up to `[DONE]` or the end of the body. Raises ServerError for an error in the stream."""
    for data in _read_messages(chunks):
        if data.strip() == "[DONE]":
            yield Piece(finish="stop")  # for servers that send no reason; one that was sent came first
            return
        if data.strip() not in ("", "null"):  # keep-alive messages
            yield _parse_piece(_parse_data(data))


def _parse_piece(value: Mapping[str, Any]) -> Piece:
    if text := error_text(value):
        raise ServerError(text)
    choices = map(as_mapping, as_list(value.get("choices")))
    choice = next((each for each in choices if not each.get("index")), {})  # one was requested
    message = as_mapping(choice.get("delta")) or as_mapping(choice.get("message"))
    return Piece(
        content_text(message.get("content")),
        finish_reason_of(choice.get("finish_reason")),
        _parse_usage(value.get("usage")),
        thinking_text(message),
        _parse_logprobs(choice.get("logprobs")),
    )


def _parse_usage(value: object) -> Usage | None:
    if not isinstance(value, Mapping):
        return None
    cached = token_count(as_mapping(value.get("prompt_tokens_details")).get("cached_tokens"))
    return Usage(token_count(value.get("prompt_tokens")), cached, token_count(value.get("completion_tokens")))


def _parse_logprobs(value: object) -> tuple[TokenLogprob, ...]:
    entries = map(as_mapping, as_list(as_mapping(value).get("content")))
    return tuple(_parse_token(each, as_list(each.get("top_logprobs"))) for each in entries)


def _parse_token(value: Mapping[str, Any], top: Sequence[object]) -> TokenLogprob:
    text, data = repair_surrogates(content_text(value.get("token"))), as_list(value.get("bytes"))
    is_data = isinstance(value.get("bytes"), list) and all(
        type(each) is int and 0 <= each < 256 for each in data
    )
    return TokenLogprob(
        text,
        _parse_logprob(value.get("logprob")),
        token_count(value.get("id")),
        tuple(data) if is_data else None,
        tuple(_parse_token(as_mapping(each), ()) for each in top),
    )


def _parse_logprob(value: object) -> float:
    """A logarithm, at most 0; minus infinity for any other JSON."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
        return -math.inf
    return float(min(value, 0))


def _read_messages(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each event; or one JSON object, from a server that does not stream."""
    source = iter(chunks)
    start = b""
    for chunk in source:
        start = (start + chunk).lstrip().removeprefix(_BOM)
        if start and not _BOM.startswith(start):
            break
    if not start.startswith(b"{"):
        return parse_events(chain([start], source))
    return iter((read_whole(chain([start], source)),))


def _parse_data(data: str) -> dict[str, Any]:
    """Parse one message. An error may contain quotation marks that the server did not escape."""
    try:
        return parse_message(data)
    except ServerError:
        if data.lstrip().startswith('{"error"'):
            return {"error": data}
        raise


OPENAI = Dialect(
    "openai", "OpenAI's API", "/chat/completions", "/models", unchanged, openai_body, read_openai_stream
)
RKLLAMA = Dialect(
    "rkllama",
    "rkllama; it ignores a system message, so the first user message starts with its text",
    "/chat/completions",
    "/models",
    fold_system,
    openai_body,
    read_openai_stream,
    GEMMA_STOPS,
)
RKLLM = Dialect(
    "rkllm",
    "Rockchip's server 1.3; it reads one message, so the conversation is sent as one",
    "/chat/completions",
    "/models",
    flatten_conversation,
    openai_body,
    read_openai_stream,
    GEMMA_STOPS,
)
