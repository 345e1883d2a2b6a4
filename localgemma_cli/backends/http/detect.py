"""Detect which dialect a server speaks and which models it has; one request for most servers."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import Any

from localgemma_cli.backends.http.dialect import Dialect, as_mapping, json_text, token_count
from localgemma_cli.backends.http.endpoint import Endpoint
from localgemma_cli.backends.http.notices import Notices, wait_before_retry
from localgemma_cli.backends.http.openai import OPENAI, RKLLAMA, RKLLM
from localgemma_cli.backends.http.rockchip import RKLLAMA_API, RKLLM_1_2
from localgemma_cli.backends.http.server_errors import Refusal, TransientError, quote, refusal_error
from localgemma_cli.backends.http.sse import parse_message
from localgemma_cli.backends.http.transport import Exchange
from localgemma_cli.errors import EndpointError
from localgemma_cli.redaction import redact
from localgemma_cli.sanitize import one_line
from localgemma_cli.text import repair_surrogates

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect for dialect in (OPENAI, RKLLAMA, RKLLAMA_API, RKLLM, RKLLM_1_2)
}
_LONGEST_LIST = 4 * 2**20  # bytes
_LONGEST_NAME = 200  # characters
_DIALECT_BY_OWNER = {"rkllama": RKLLAMA, "rkllm": RKLLM}
_REPEAT_PENALTY_OWNERS = ("llamacpp", "rkllm")  # other servers name it repetition_penalty
# These continue an answer at the end of the messages (`continue_final_message`); others differ.
_CONTINUING_OWNERS = ("vllm", "sglang")


@dataclass(frozen=True)
class ServerInfo:
    """What is known of a server: the names of its `models`, and `owner`, the software that serves them."""

    dialect: Dialect
    models: tuple[str, ...] = ()
    owner: str = ""
    context_length: int | None = None

    @property
    def penalty_name(self) -> str:
        return "repeat_penalty" if self.owner in _REPEAT_PENALTY_OWNERS else "repetition_penalty"

    @property
    def continues(self) -> bool:
        return self.owner in _CONTINUING_OWNERS


def detect_server(endpoint: Endpoint, notices: Notices, cancel: Event) -> ServerInfo:
    """The server's dialect and models; raises EndpointError if it cannot be reached or rejects the key."""
    dialect = DIALECTS.get(endpoint.dialect)
    if dialect is None:
        server = _detect_dialect(endpoint, notices, cancel)
    elif endpoint.model or dialect.models_path is None:
        server = ServerInfo(dialect)
    else:
        listed = _get_json(endpoint, dialect_url(endpoint, dialect, dialect.models_path), notices, cancel)[1]
        server = _parse_models(listed, endpoint, dialect)
    if endpoint.model is None and len(server.models) > 1:
        notices.say(
            f"[server has {len(server.models)} models; using {server.models[0]}, choose another with -m]"
        )
    owner = f" ({server.owner})" if server.owner else ""
    notices.detail(f"endpoint: {endpoint.root}, {server.dialect.summary}{owner}")
    return server


def dialect_url(endpoint: Endpoint, dialect: Dialect, path: str) -> str:
    return (endpoint.base if dialect.path == OPENAI.path else endpoint.root) + path


def _detect_dialect(endpoint: Endpoint, notices: Notices, cancel: Event) -> ServerInfo:
    listed = _get_json(endpoint, f"{endpoint.base}/models", notices, cancel)[1]
    if isinstance(listed.get("data"), list):
        server = _parse_models(listed, endpoint, OPENAI)
        dialect = _DIALECT_BY_OWNER.get(server.owner, OPENAI)
        return ServerInfo(dialect, server.models, server.owner, server.context_length)
    status, _ = _get_json(endpoint, endpoint.root + RKLLM_1_2.path, notices, cancel)
    if status == 405:  # the path exists, but not for GET
        return ServerInfo(RKLLM_1_2)
    if "rkllama" in json_text(_get_json(endpoint, f"{endpoint.root}/", notices, cancel)[1]).lower():
        listed = _get_json(endpoint, endpoint.root + "/api/tags", notices, cancel)[1]
        return _parse_models(listed, endpoint, RKLLAMA_API)
    return ServerInfo(OPENAI)


def _parse_models(value: Mapping[str, Any], endpoint: Endpoint, dialect: Dialect) -> ServerInfo:
    entries = value.get("data") or value.get("models")
    entries = [each for each in entries if isinstance(each, dict)] if isinstance(entries, list) else []
    named = ((each.get("id") or each.get("name"), each) for each in entries)
    names = {
        one_line(repair_surrogates(name)): each
        for name, each in named
        if _is_displayable_name(name, endpoint.key)
    }
    model = endpoint.model
    entry = names.get(model or next(iter(names), ""), {})
    context = token_count(entry.get("max_model_len")) or token_count(
        as_mapping(entry.get("meta")).get("n_ctx")
    )
    owner = entry.get("owned_by") or next((each.get("owned_by") for each in entries), "")
    owner = one_line(repair_surrogates(owner)) if _is_displayable_name(owner, endpoint.key) else ""
    return ServerInfo(dialect, tuple(names), owner, context)


def _is_displayable_name(value: object, key: str | None) -> bool:
    """Whether a value is a short name without the API key; a server can send anything."""
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST_NAME:
        return False
    return redact(value, key) == value


def _get_json(endpoint: Endpoint, url: str, notices: Notices, cancel: Event) -> tuple[int, dict[str, Any]]:
    """GET `url`, with retries: its status, and its JSON object or {}. Raises EndpointError."""
    attempts = 0
    while True:
        attempts += 1
        try:
            return _get_json_once(endpoint, url, cancel)
        except TransientError as error:
            wait_before_retry(error, attempts, notices, cancel)


def _get_json_once(endpoint: Endpoint, url: str, cancel: Event) -> tuple[int, dict[str, Any]]:
    with closing(Exchange(endpoint, "GET", url, None, cancel)) as exchange:
        head = exchange.head()
        text = exchange.text(_LONGEST_LIST)
    if head.status in (401, 403, 429, 502, 503, 504):
        refusal = Refusal(head.status, quote(text, endpoint.key), head.headers)
        raise refusal_error(refusal, endpoint, endpoint.model, "")
    if not head.ok:
        return head.status, {}
    try:
        return head.status, parse_message(text)
    except EndpointError:  # a web page
        return head.status, {}
