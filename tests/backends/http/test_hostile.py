"""Any JSON in any field, in every dialect: an answer or one error for people, and nothing else.

LOCALGEMMA_FUZZ=500 tries as many streams in each dialect; the usual run tries a few.
"""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.raw_server import RawServer, opened, response

from localgemma_cli.backends.http.backend import connect
from localgemma_cli.backends.http.detect import DIALECTS
from localgemma_cli.backends.http.endpoint import parse_endpoint
from localgemma_cli.conversation import Message
from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.events import Delta, Event, Finished, Thinking
from localgemma_cli.sampling import Sampling

from .test_deadlines import MIB, little_memory  # noqa: F401

EXAMPLES = int(os.environ.get("LOCALGEMMA_FUZZ", "60"))
ASKED = (Message("system", "Be kind."), Message("user", "Hello"))
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
KEY = "sk-the-key-of-this-test-4711"

ODD_TEXTS = (
    *(
        "",
        "x",
        "\ud83d",
        "\ude00",
        "\ud83d\ude00",
        "a\x00b",
        "\x1b]52;c;eA==\x07",
        "\u202e",
        "\ufeff",
        "null",
    ),
    *(
        "<eos>",
        "<end_of_tu",
        "length",
        "stop",
        KEY,
        KEY[:12],
        KEY[12:],
        "maximum " * 2000,
        "\r\n",
        "data: x\n\n",
    ),
)
ODD_NUMBERS = (0, -1, 1.5, 10**400, 10**4000, 1e308, float("inf"), float("nan"))
FIELDS = (
    "content",
    "text",
    "message",
    "delta",
    "error",
    "type",
    "code",
    "index",
    "role",
    "x",
    "finish_reason",
)
odd = st.recursive(
    st.none() | st.booleans() | st.sampled_from(ODD_TEXTS) | st.sampled_from(ODD_NUMBERS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
    max_leaves=6,
)


def either(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(usual, usual, odd)


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return either(st.fixed_dictionaries({}, optional=fields))


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def listed(name: object) -> bytes:
    entry = {"id": name, "name": name, "owned_by": name, "max_model_len": name, "meta": name}
    return encoded({"data": [entry], "models": [entry]})


said = objects(
    role=either(st.just("assistant")),
    content=either(st.just("word ")),
    reasoning=either(st.just("hm ")),
    reasoning_content=odd,
    thinking=odd,
)
choice = objects(index=either(st.just(0)), delta=said, message=said, finish_reason=either(st.just("stop")))
message = objects(
    choices=either(st.lists(choice, max_size=3)),
    message=said,
    done=either(st.booleans()),
    done_reason=odd,
    usage=objects(prompt_tokens=odd, completion_tokens=odd, prompt_tokens_details=odd),
    eval_count=odd,
    prompt_eval_count=odd,
    error=odd,
    object=odd,
    status=odd,
    detail=odd,
)
RAW = (b"[DONE]", b"", b"null", b"[" * 100_000, b'{"a":' * 5000, b"9" * 5000, b"no \x1b[2J", b"\xff\xfe\x00")
payload = message.map(encoded) | st.sampled_from(RAW)
names = st.sampled_from(
    [*[b"data: "] * 4, b"data:", b"event: error\ndata: ", b"error: ", b": ", b"id: ", b""]
)
ends = st.sampled_from([b"\n\n", b"\n\n", b"\r\n\r\n", b"\r\r", b"\n", b"\n\r", b"\r\n"])
part = st.builds(lambda *parts: b"".join(parts), names, payload, ends)
starts = st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\n\n \n"])
stream = st.builds(
    lambda start, parts, end: start + b"".join(parts) + end,
    starts,
    st.lists(part, max_size=6),
    st.sampled_from([b"data: [DONE]\n\n", b""]),
)
bodies = stream | payload | st.binary(max_size=200)
statuses = st.sampled_from(
    [*["200 OK"] * 8, "400 \x1b[1m", "404 No", "500 Oh", "302 Found", "422 No", "401 No", "204 No"]
)
listings = (
    st.just(listed("m")) | odd.map(listed) | odd.map(lambda v: encoded({"data": v, "models": v})) | payload
)


class Script:
    """What the server of one example sends."""

    status, body, listing = "200 OK", b"", b""


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[RawServer, Script]]:
    script = Script()

    def handle(connection: Any, request: Any) -> None:
        if request.method == "GET":
            connection.sendall(response(script.listing))
        elif script.status.startswith("302"):
            connection.sendall(response(b"", f"Location: http://x/?{KEY}\x1b", status=script.status))
        elif script.status.startswith("200"):
            connection.sendall(opened() + script.body)
        else:
            connection.sendall(response(script.body, status=script.status))

    with RawServer(handle) as server:
        yield server, script


def happened(url: str, dialect: str, told: list[str]) -> list[Event]:
    """All events of one question; an error for people is put into words."""
    endpoint = parse_endpoint(url, dialect=dialect, timeout=20, environ={"LOCALGEMMA_API_KEY": KEY})
    events: list[Event] = []
    try:
        backend = connect(endpoint, told.append, told.append)
        told.append(backend.model)
        for each in backend.stream(ASKED, Sampling(seed=1, top_k=2), threading.Event()):
            events.append(each)
    except LocalGemmaError as error:
        told += [error.message, error.hint, *getattr(error, "__notes__", [])]
    if events and isinstance(events[-1], Finished) and events[-1].error:
        told += [events[-1].error.message, events[-1].error.hint]
    return events


@pytest.mark.parametrize("dialect", ["auto", *DIALECTS])
@pytest.mark.usefixtures("little_memory")
def test_any_stream_is_an_answer_or_one_error(
    dialect: str, scripted: tuple[RawServer, Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localgemma_cli.backends.http.notices.RETRY_SECONDS", (0.0, 0.0))
    server, script = scripted

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(status=statuses, body=bodies, listing=listings)
    def attempt(status: str, body: bytes, listing: bytes) -> None:
        script.status, script.body, script.listing = status, body, listing
        told: list[str] = []
        began = time.monotonic()
        events = happened(server.url, dialect, told)
        assert time.monotonic() - began < 20
        for line in "\n".join(told).split("\n"):
            assert not CONTROL.search(line), line
            assert KEY not in line
        for each in events:
            if isinstance(each, Delta | Thinking):
                assert each.text.encode()  # whole characters
                assert KEY not in each.text

    attempt()
