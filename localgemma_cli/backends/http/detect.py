"""What a server speaks and which models it has, by asking it: one request for most servers."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import Any

from localgemma_cli.backends.http.dialect import Dialect, as_mapping, count, words_of
from localgemma_cli.backends.http.endpoint import Endpoint
from localgemma_cli.backends.http.failures import PassingError, Refusal, quoted, refusal_error
from localgemma_cli.backends.http.notices import Voice, wait_out
from localgemma_cli.backends.http.openai import OPENAI, RKLLAMA, RKLLM
from localgemma_cli.backends.http.rockchip import RKLLAMA_API, RKLLM_OLD
from localgemma_cli.backends.http.sse import parse_object
from localgemma_cli.backends.http.transport import Exchange
from localgemma_cli.errors import EndpointError
from localgemma_cli.redaction import redacted
from localgemma_cli.sanitize import one_line
from localgemma_cli.text import repair_surrogates

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect for dialect in (OPENAI, RKLLAMA, RKLLAMA_API, RKLLM, RKLLM_OLD)
}
_LONGEST_LIST = 4 * 2**20  # bytes
_LONGEST_NAME = 200  # characters
_BY_OWNER = {"rkllama": RKLLAMA, "rkllm": RKLLM}
_SAYS_REPEAT_PENALTY = ("llamacpp", "rkllm")  # where others say repetition_penalty
# By `continue_final_message`; what others make of an answer at the end differs.
_CONTINUES = ("vllm", "sglang")


@dataclass(frozen=True)
class Found:
    """`models` are the names that the server lists, `owner` who it says serves them."""

    dialect: Dialect
    models: tuple[str, ...] = ()
    owner: str = ""
    context_length: int | None = None

    @property
    def penalty_name(self) -> str:
        return "repeat_penalty" if self.owner in _SAYS_REPEAT_PENALTY else "repetition_penalty"

    @property
    def continues(self) -> bool:
        return self.owner in _CONTINUES


def find(endpoint: Endpoint, voice: Voice, cancel: Event) -> Found:
    """Raises EndpointError where the server cannot be reached or refuses the key."""
    dialect = DIALECTS.get(endpoint.dialect)
    if dialect is None:
        found = _detected(endpoint, voice, cancel)
    elif endpoint.model or dialect.models_path is None:
        found = Found(dialect)
    else:
        listed = _asked(endpoint, address(endpoint, dialect, dialect.models_path), voice, cancel)[1]
        found = _listed(listed, endpoint, dialect)
    if endpoint.model is None and len(found.models) > 1:
        voice.say(f"[the server has {len(found.models)} models; this is {found.models[0]}, -m takes another]")
    who = f" ({found.owner})" if found.owner else ""
    voice.detail(f"endpoint: {endpoint.root} speaks {found.dialect.summary}{who}")
    return found


def address(endpoint: Endpoint, dialect: Dialect, path: str) -> str:
    return (endpoint.base if dialect.path == OPENAI.path else endpoint.root) + path


def _detected(endpoint: Endpoint, voice: Voice, cancel: Event) -> Found:
    listed = _asked(endpoint, f"{endpoint.base}/models", voice, cancel)[1]
    if isinstance(listed.get("data"), list):
        found = _listed(listed, endpoint, OPENAI)
        return Found(_BY_OWNER.get(found.owner, OPENAI), found.models, found.owner, found.context_length)
    if _asked(endpoint, endpoint.root + RKLLM_OLD.path, voice, cancel)[0] == 405:  # there, but not for GET
        return Found(RKLLM_OLD)
    if "rkllama" in words_of(_asked(endpoint, f"{endpoint.root}/", voice, cancel)[1]).lower():
        listed = _asked(endpoint, endpoint.root + "/api/tags", voice, cancel)[1]
        return _listed(listed, endpoint, RKLLAMA_API)
    return Found(OPENAI)


def _listed(value: Mapping[str, Any], endpoint: Endpoint, dialect: Dialect) -> Found:
    entries = value.get("data") or value.get("models")
    entries = [each for each in entries if isinstance(each, dict)] if isinstance(entries, list) else []
    named = ((each.get("id") or each.get("name"), each) for each in entries)
    names = {one_line(repair_surrogates(name)): each for name, each in named if _is_name(name, endpoint.key)}
    model = endpoint.model
    entry = names.get(model or next(iter(names), ""), {})
    context = count(entry.get("max_model_len")) or count(as_mapping(entry.get("meta")).get("n_ctx"))
    owner = entry.get("owned_by") or next((each.get("owned_by") for each in entries), "")
    owner = one_line(repair_surrogates(owner)) if _is_name(owner, endpoint.key) else ""
    return Found(dialect, tuple(names), owner, context)


def _is_name(value: object, key: str | None) -> bool:
    """Whether it can be shown: a server can send anything, also the key."""
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST_NAME:
        return False
    return redacted(value, key) == value


def _asked(endpoint: Endpoint, url: str, voice: Voice, cancel: Event) -> tuple[int, dict[str, Any]]:
    """(status, the JSON object that came, {} for none); raises where no answer can come of it."""
    tries = 0
    while True:
        tries += 1
        try:
            return _asked_once(endpoint, url, cancel)
        except PassingError as error:
            wait_out(error, tries, voice, cancel)


def _asked_once(endpoint: Endpoint, url: str, cancel: Event) -> tuple[int, dict[str, Any]]:
    with closing(Exchange(endpoint, "GET", url, None, cancel)) as exchange:
        head = exchange.head()
        text = exchange.text(_LONGEST_LIST)
    if head.status in (401, 403, 429, 502, 503, 504):
        refusal = Refusal(head.status, quoted(text, endpoint.key), head.headers)
        raise refusal_error(refusal, endpoint, endpoint.model, "")
    if not head.ok:
        return head.status, {}
    try:
        return head.status, parse_object(text)
    except EndpointError:  # a page for people
        return head.status, {}
