"""Values that go over the socket come out as they went in."""

import os
import socket

import pytest

from localgemma_cli.backends.answer_stream import AnswerBroken
from localgemma_cli.constraint import Choices, JsonSchema, Regex
from localgemma_cli.conversation import Message
from localgemma_cli.errors import ContextOverflowError, LocalGemmaError
from localgemma_cli.events import (
    Delta,
    Finished,
    LoadProgress,
    Reading,
    Thinking,
    Timing,
    TokenLogprob,
    Usage,
)
from localgemma_cli.sampling import Sampling
from localgemma_cli.warm.about import BackendAbout, EngineAbout
from localgemma_cli.warm.wire import Wire, WireBroken, WireClosed, peer_of

LOGPROB = TokenLogprob("é", -1.5e-300, 7, (195, 169), (TokenLogprob("e", -9.0),))
VALUES = [
    Message("user", "a\ud800\n\x00 \u2028 }", (1, 2)),
    Message("assistant", ""),
    Sampling(0.1, 0.2, 3, 0.4, 1.1, 2**63 - 1, 6, 7, JsonSchema('{"$": {"type": "map"}}')),
    Sampling(constraint=Choices(("a", "b"))),
    Sampling(constraint=Regex("a{2}")),
    Delta("x"),
    Thinking(""),
    Reading(1, 2),
    LoadProgress("reading", 1, None, "tensors"),
    Finished("stop", Usage(1, None, 3), Timing(0.1, None, 1 / 3), (1, 2), None, (LOGPROB,)),
    BackendAbout("local", None, True, 8192),
    EngineAbout("demo", "a", "b", ("w",), (), {"plan": {"$": {"memory": 1.5}, "shares": ()}}),
    {"$": ({"do": None},), "value": True},
]


@pytest.fixture
def wires() -> tuple[Wire, Wire]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Wire(ours), Wire(theirs)


@pytest.mark.parametrize("value", VALUES, ids=lambda each: type(each).__name__)
def test_a_value_arrives_unchanged(wires: tuple[Wire, Wire], value: object) -> None:
    wires[0].send(value)
    assert wires[1].receive(60) == value


def test_an_error_arrives_with_its_class_its_hint_and_its_cause(wires: tuple[Wire, Wire]) -> None:
    sent = ContextOverflowError("Too long.", "Shorten it.")
    sent.__cause__ = ValueError("why")
    wires[0].send(Finished("error", Usage(1, 2, 3), Timing(0, None, 0), None, sent))
    found = wires[1].receive(60).error
    assert (type(found), found.message, found.hint) == (ContextOverflowError, "Too long.", "Shorten it.")
    assert str(found.__cause__) == "why"
    wires[0].send(AnswerBroken("Broken.", "Again."))  # its class is not among those of `errors.py`
    found = wires[1].receive(60)
    assert type(found) is LocalGemmaError
    assert (found.message, found.kind) == ("Broken.", AnswerBroken("", "").kind)


def test_messages_come_apart_whatever_the_pieces_in_which_they_arrive() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    wire = Wire(theirs)
    ours.sendall(b'[1]\n[2]\n{"$":"De')
    assert [wire.receive(60), wire.receive(60), wire.receive(0.01)] == [(1,), (2,), None]
    ours.sendall(b'lta","text":"x"}\n')
    assert wire.receive(60) == Delta("x")
    ours.close()
    with pytest.raises(WireClosed):
        wire.receive(60)


@pytest.mark.parametrize(
    "line",
    [b"HTTP/1.1 200 OK", b"{}", b'{"$":"Path"}', b'{"$":"Delta"}', b'{"$":"error","value":[]}', b"\xff"],
)
def test_what_the_program_does_not_send_is_refused(line: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.sendall(line + b"\n")
    with pytest.raises(WireBroken, match="protocol"):
        Wire(theirs).receive(60)


def test_the_peer_of_a_socket_is_its_process_and_user() -> None:
    ours, _theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    assert peer_of(ours) in (None, (os.getpid(), os.getuid()))
