"""`/v1/chat/completions`: vLLM, SGLang, TGI, llama.cpp, Ollama, `transformers serve`, and boards."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from localgemma_cli.backends.http.dialect import (
    GEMMA_STOPS,
    Ask,
    Dialect,
    Piece,
    ServerError,
    as_is,
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
from localgemma_cli.backends.http.sse import events, parse_object, whole
from localgemma_cli.conversation import folded
from localgemma_cli.events import Usage

_BOM = b"\xef\xbb\xbf"

# What a server may refuse without the answer losing its sense.
DROPPABLE = (
    "stream_options",
    "top_k",
    "min_p",
    "repetition_penalty",
    "repeat_penalty",
    "seed",
    "top_p",
    "max_tokens",
    "temperature",
)


def body(ask: Ask) -> dict[str, object]:
    model = {} if ask.model is None else {"model": ask.model}
    goes_on = ask.messages[-1].role == "assistant"
    return {
        "messages": plain(ask.messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        **model,
        **({"continue_final_message": True, "add_generation_prompt": False} if goes_on else {}),
        **options(ask.sampling, ask.penalty_name, "max_tokens"),
    }


def pieces(chunks: Iterable[bytes]) -> Iterator[Piece]:
    """Ends at `[DONE]`, or where the server ends; raises ServerError for an error in the stream."""
    for data in _messages(chunks):
        if data.strip() == "[DONE]":
            yield Piece(finish="stop")  # some say no reason; where one was said, it came first
            return
        if data.strip() not in ("", "null"):  # these only keep the connection alive
            yield piece(_object(data))


def piece(value: Mapping[str, Any]) -> Piece:
    if words := server_words(value):
        raise ServerError(words)
    choices = map(as_mapping, as_list(value.get("choices")))
    choice = next((each for each in choices if not each.get("index")), {})  # we ask for one
    said = as_mapping(choice.get("delta")) or as_mapping(choice.get("message"))
    return Piece(
        text_of(said.get("content")),
        finish_of(choice.get("finish_reason")),
        usage(value.get("usage")),
        thinking_of(said),
    )


def usage(value: object) -> Usage | None:
    if not isinstance(value, Mapping):
        return None
    cached = count(as_mapping(value.get("prompt_tokens_details")).get("cached_tokens"))
    return Usage(count(value.get("prompt_tokens")), cached, count(value.get("completion_tokens")))


def _messages(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of events; a server that does not stream sends one JSON object, whole."""
    source = iter(chunks)
    start = b""
    for chunk in source:
        start = (start + chunk).lstrip().removeprefix(_BOM)
        if start and not _BOM.startswith(start):
            break
    if not start.startswith(b"{"):
        return events(chain([start], source))
    return iter((whole(chain([start], source)),))


def _object(data: str) -> dict[str, Any]:
    """An error may hold quotation marks that its server did not escape."""
    try:
        return parse_object(data)
    except ServerError:
        if data.lstrip().startswith('{"error"'):
            return {"error": data}
        raise


OPENAI = Dialect("openai", "OpenAI's API", "/chat/completions", "/models", as_is, body, pieces)
RKLLAMA = Dialect(
    "rkllama",
    "rkllama, which drops a system message: it is folded into the first turn",
    "/chat/completions",
    "/models",
    folded,
    body,
    pieces,
    GEMMA_STOPS,
)
RKLLM = Dialect(
    "rkllm",
    "Rockchip's server 1.3, which reads one message: the conversation is told in it",
    "/chat/completions",
    "/models",
    flattened,
    body,
    pieces,
    GEMMA_STOPS,
)
