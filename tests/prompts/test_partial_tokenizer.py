"""A tokenizer without its merges gives the ids of the whole one."""

import json
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import DEMO

from localgemma_cli.prompts.partial_tokenizer import read_partial_tokenizer
from localgemma_cli.prompts.tokenizer import Tokenizer, build_tokenizer
from localgemma_cli.prompts.tokenizer_files import read_tokenizer_settings
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer

DATA = (DEMO / "tokenizer.json").read_bytes()
SETTINGS = read_tokenizer_settings(DEMO)
TEXTS = ("", "    what\n\n\n  does", "aaaa aaaaa ====", "<eos><unused7> <0x41> 東京 😀 ﷺ\u0301", "Help " * 40)


def whole() -> Tokenizer:
    return build_tokenizer(tokenizers.Tokenizer.from_str(DATA.decode()), SETTINGS)


def partial(data: bytes = DATA) -> Tokenizer:
    tokenizer = read_partial_tokenizer(data, SETTINGS)
    assert tokenizer is not None
    return tokenizer


WHOLE, PARTIAL = whole(), partial()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="aelo =-\n<>", max_size=60))
def test_any_text_has_the_same_ids(text: str) -> None:
    ids = WHOLE.encode(text)
    assert PARTIAL.encode(text) == ids
    assert PARTIAL.decode(ids) == WHOLE.decode(ids)


def test_all_else_is_the_same() -> None:
    one, other = whole(), partial()
    for tokenizer in (one, other):
        tokenizer.mark_special(frozenset(("<unused7>",)))
    for text in TEXTS:
        assert other.encode(text) == one.encode(text)
    assert (other.size, other.vocabulary, other.added_tokens) == (one.size, one.vocabulary, one.added_tokens)
    assert (other.names, other.templates, other.eos_id) == (one.names, one.templates, one.eos_id)
    assert [other.token_of(each) for each in range(300)] == [one.token_of(each) for each in range(300)]


@pytest.mark.parametrize("tokenizer", [WHOLE, PARTIAL], ids=["whole", "partial"])
def test_other_threads_run_while_a_long_text_is_encoded(tokenizer: Tokenizer) -> None:
    """Ctrl-C and the spinner need that; the best of three, as other programs hold threads up as well."""
    assert (
        min(longest_pause(tokenizer, f"{'The quick brown fox. ' * 60_000}{each}") for each in range(3)) < 0.5
    )


def longest_pause(tokenizer: Tokenizer, text: str) -> float:
    """The longest time that another thread stood still, as a share of the time of encoding."""
    ended, moments = threading.Event(), [time.monotonic()]

    def tick() -> None:
        while not ended.wait(0.001):
            moments.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    started = time.monotonic()
    tokenizer.encode(text)
    moments.append(time.monotonic())
    ended.set()
    thread.join()
    pauses = (after - before for before, after in pairwise(moments))
    return max(pauses) / (moments[-1] - started)


def changed(**changes: Any) -> bytes:
    stored = json.loads(DATA)
    model = {key: value for key, value in changes.items() if key in stored["model"]}
    rest = {key: value for key, value in changes.items() if key not in stored["model"]}
    return json.dumps({**stored, **rest, "model": {**stored["model"], **model}}).encode()


def test_merges_in_pairs_are_those_in_one_text() -> None:
    merges = [
        each.split(" ") if isinstance(each, str) else each for each in json.loads(DATA)["model"]["merges"]
    ]
    one, other = partial(changed(merges=merges)), partial(changed(merges=[" ".join(each) for each in merges]))
    for text in TEXTS:
        assert one.encode(text) == other.encode(text) == WHOLE.encode(text)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        DATA[:-9],
        changed(normalizer=None),
        changed(pre_tokenizer={"type": "ByteLevel"}),
        changed(dropout=0.1),
        changed(merges=[]),
        changed(vocab={"a": 0, "<unk>": 2}),
        changed(added_tokens=[{"id": 0, "content": "<not in it>"}]),
    ],
)
def test_other_forms_are_left_to_the_library(data: bytes) -> None:
    assert read_partial_tokenizer(data, SETTINGS) is None


def test_large_files_are_read_this_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localgemma_cli.prompts.tokenizer_loader._LARGE", 1000)
    assert type(load_tokenizer(DEMO)) is type(PARTIAL)
