"""Bytes cut anywhere become the same events."""

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localgemma_cli.backends.http.dialect import Piece, ServerError
from localgemma_cli.backends.http.openai import read_openai_stream
from localgemma_cli.backends.http.rockchip import read_rkllama_stream, read_rkllm_stream
from localgemma_cli.backends.http.sse import parse_events, split_lines
from localgemma_cli.backends.http.text_filters import cut_at_stop, join_surrogates, mask_secret
from localgemma_cli.errors import EndpointError
from localgemma_cli.events import TokenLogprob, Usage


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def text_of(chunks: list[bytes]) -> str:
    return "".join(piece.text for piece in read_openai_stream(chunks))


def chunk(text: str | None, finish: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(deadline=None)
@given(texts=st.lists(TEXT), places=st.lists(st.integers(0, 10_000)), end=st.sampled_from(["\n", "\r\n"]))
def test_cuts_never_change_the_text(texts: list[str], places: list[int], end: str) -> None:
    stream = "".join(f"data: {json.dumps(chunk(text), ensure_ascii=False)}{end}{end}" for text in texts)
    assert text_of(cut(stream.encode(), places)) == "".join(texts)


def test_comments_ids_and_other_fields_are_no_data() -> None:
    stream = b": keep-alive\n\nevent: message\nid: 7\nretry: 10\ndata: one\ndata: two\n\n\n\ndata:three\n\n"
    assert list(parse_events([stream])) == ["one\ntwo", "three"]


def test_what_a_stream_may_hold_besides_text() -> None:
    odd = [
        {"choices": [{"index": 0, "delta": {"role": "assistant"}}]},
        {"choices": []},
        {"choices": [{"index": 1, "delta": {"content": "another choice"}}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "hm", "content": None}}]},
        {"choices": [{"index": 0, "delta": None}]},
        {"choices": [{"index": 0, "delta": {"content": "text"}}]},
        {"object": "other"},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": None}},
    ]
    stream = "".join(f"data: {json.dumps(each)}\n\n" for each in odd).encode()
    got = list(read_openai_stream([stream]))
    assert "".join(piece.text for piece in got) == "text"
    assert [piece.finish for piece in got if piece.finish] == ["length"]
    assert [piece.usage for piece in got if piece.usage] == [Usage(5, None, 1)]


KEEP_ALIVE = (b"data: null\n\n", b"data:\n\n", b"event: ping\ndata: \n\n", b": hello\n\n", b"\n")


@pytest.mark.parametrize("between", KEEP_ALIVE)
def test_what_keeps_a_connection_alive_is_no_error(between: bytes) -> None:
    stream = [f"data: {json.dumps(chunk(text))}\n\n".encode() for text in ("Hello", " there")]
    assert text_of([between, stream[0], between, stream[1], between, b"data: [DONE]\n\n"]) == "Hello there"


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_every_end_of_a_line_wherever_it_is_cut(end: str) -> None:
    stream = f"\ufeffdata: one{end}data: two{end}{end}data: three{end}{end}".encode()
    assert list(parse_events([stream])) == ["one\ntwo", "three"]
    assert list(parse_events(cut(stream, list(range(len(stream)))))) == ["one\ntwo", "three"]


@pytest.mark.parametrize("data", ["boom", '{"message": "boom"}', '{"error": {"message": "boom"}}', '"boom"'])
def test_an_event_named_error_is_one(data: str) -> None:
    with pytest.raises(ServerError, match="failed") as caught:
        list(read_openai_stream([f"event: error\ndata: {data}\n\n".encode()]))
    assert "boom" in caught.value.text


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_what_is_thought_stands_apart(name: str) -> None:
    said = {"choices": [{"index": 0, "delta": {"content": None, name: "hm"}}]}
    assert list(read_openai_stream([f"data: {json.dumps(said)}\n\n".encode()])) == [Piece(thinking="hm")]
    line = json.dumps({"message": {"content": "", name: "hm"}, "done": False}).encode() + b"\n"
    assert next(iter(read_rkllama_stream([line]))) == Piece(thinking="hm")


def test_halves_of_a_character_are_joined_and_lone_ones_replaced() -> None:
    parts = [Piece("a\ud83d"), Piece("\ude00b", thinking="\ud83d"), Piece("\ud83d"), Piece("c\ud83d", "stop")]
    got = list(join_surrogates(parts))
    assert "".join(piece.text for piece in got) == "a😀b\ufffdc\ufffd"
    assert "".join(piece.thinking for piece in got) == "\ufffd"


@settings(deadline=None)
@given(places=st.lists(st.integers(0, 100)))
def test_a_secret_in_the_answer_is_masked_wherever_it_is_cut(places: list[int]) -> None:
    text = "the key is sk-secret-1, not sk-secret-2 or sk-"
    parts = [Piece(each.decode()) for each in cut(text.encode(), places)]
    got = "".join(piece.text for piece in mask_secret(parts, "sk-secret-1"))
    assert got == text.replace("sk-secret-1", "***")


def test_a_server_that_does_not_stream_is_read_all_the_same() -> None:
    whole = {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}
    assert list(read_openai_stream([json.dumps(whole, indent=1).encode()])) == [Piece("Hello", "stop", None)]


@pytest.mark.parametrize(
    "data",
    [
        {"error": {"message": "out of memory", "code": 500}},
        {"error": "out of memory"},
        {"object": "error", "message": "out of memory"},
        {"status": "error", "message": "out of memory"},
    ],
)
def test_every_form_of_an_error_in_the_stream(data: object) -> None:
    with pytest.raises(ServerError) as caught:
        list(read_openai_stream([f"data: {json.dumps(data)}\n\n".encode()]))
    assert "out of memory" in caught.value.text


def test_an_error_whose_server_forgot_to_escape_it() -> None:
    with pytest.raises(ServerError) as caught:
        list(read_openai_stream([b'data: {"error": "the "big" CUDA error"}\n\n']))
    assert "CUDA" in caught.value.text


@pytest.mark.parametrize(
    "data", [b"data: [1]\n\n", b"data: nonsense\n\n", b"data: " + b"[" * 100_000 + b"\n\n"]
)
def test_what_is_no_object_is_an_error(data: bytes) -> None:
    with pytest.raises(EndpointError):
        list(read_openai_stream([data]))


def test_a_line_without_an_end_is_bounded() -> None:
    with pytest.raises(EndpointError, match=r"4\.2 MB"):
        list(split_lines(b"x" * 2**20 for _ in range(100)))


def test_a_last_line_cut_in_its_middle_is_no_end() -> None:
    with pytest.raises(EndpointError, match="closed"):
        list(split_lines([b'{"a": 1}\n{"choi']))
    assert list(split_lines([b'{"a": 1}\n{"b": 2}'])) == ['{"a": 1}', '{"b": 2}']


def test_rkllama_lines_and_their_counts() -> None:
    stream = b'{"message": {"content": "Hi"}, "done": false}\n{"done": true, "eval_count": 4}\n'
    assert list(read_rkllama_stream([stream])) == [Piece("Hi"), Piece("", "stop", Usage(None, None, 4))]


def test_choices_that_accumulate_are_said_once() -> None:
    objects = [{"choices": [{"delta": {"content": c}} for c in "abc"[:n]]} for n in (1, 2, 3)]
    stream = "\n\n".join(map(json.dumps, objects)).encode()
    assert "".join(piece.text for piece in read_rkllm_stream([stream])) == "abc"


@settings(deadline=None)
@given(places=st.lists(st.integers(0, 100)), before=st.text("<end_of>ab", max_size=30))
def test_a_stop_string_ends_the_answer_wherever_it_is_cut(places: list[int], before: str) -> None:
    stops = ("<end_of_turn>", "<eos>")
    whole = before + "<end_of_turn>more"
    expected = whole[: min(at for at in map(whole.find, stops) if at >= 0)]
    edges = sorted({0, len(whole), *(place % (len(whole) + 1) for place in places)})
    parts = [Piece(whole[start:end]) for start, end in itertools.pairwise(edges)]
    got = list(cut_at_stop(parts, stops))
    assert "".join(piece.text for piece in got) == expected
    assert got[-1].finish == "stop"


def test_what_only_looks_like_a_stop_is_kept() -> None:
    parts = [Piece("a <end_of"), Piece("_line> b <eo"), Piece("", "stop")]
    assert (
        "".join(piece.text for piece in cut_at_stop(parts, ("<end_of_turn>", "<eos>")))
        == "a <end_of_line> b <eo"
    )


ODD = (None, "x", 5, [], [None], ["x"], [5, {}], {"0": 1}, [{"delta": "x"}], [{"delta": ["x"], "message": 5}])


@pytest.mark.parametrize("odd", [*ODD, [{"delta": {"content": {"a": 1}}}], [[["x"]]], [{"finish_reason": 5}]])
def test_what_is_no_choice_or_message_says_nothing_in_any_dialect(odd: object) -> None:
    data = json.dumps({"choices": odd, "message": odd, "usage": {"prompt_tokens": 10**400}, "usages": odd})
    streams = (
        (read_openai_stream, f"data: {data}\n\n"),
        (read_rkllm_stream, f"{data}\n"),
        (read_rkllama_stream, f"{data}\n"),
    )
    for parsed, stream in streams:
        assert "".join(piece.text for piece in parsed([stream.encode()])) == ""


def test_log_probabilities_are_read_whatever_a_server_puts_into_them() -> None:
    good = {
        "token": " a",
        "bytes": [32, 97],
        "logprob": -0.5,
        "top_logprobs": [{"token": "b", "logprob": -1}],
    }
    odd = [
        None,
        {},
        {"token": 5, "bytes": [256], "logprob": True},
        {"token": "\ud800", "logprob": "x", "id": 7},
    ]
    content = [good, *odd, {"token": "c", "bytes": "c", "logprob": 3, "top_logprobs": "none"}]
    said = {"choices": [{"delta": {"content": " a"}, "logprobs": {"content": content}}]}
    (piece,) = read_openai_stream([f"data: {json.dumps(said)}\n\n".encode()])
    nothing = TokenLogprob("", -math.inf)
    assert piece.logprobs == (
        TokenLogprob(" a", -0.5, None, (32, 97), (TokenLogprob("b", -1.0),)),
        nothing,
        nothing,
        nothing,
        TokenLogprob("\ufffd", -math.inf, 7),
        TokenLogprob("c", 0.0),
    )
