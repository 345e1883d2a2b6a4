"""Merges that are read by their bytes have the ranks that they have in the parsed file."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from support.models import DEMO

from localgemma_cli.prompts.merge_ranks import rank_merges, split_merges
from localgemma_cli.prompts.partial_tokenizer import _read

STORED: dict[str, Any] = json.loads((DEMO / "tokenizer.json").read_bytes())
# What JSON writes in another way, what marks the file's own form, and characters of two to four bytes.
ODD = (
    '"', "\\", "/", "\n", "\t", "\r", "\b", "\x0c", "\0", "\x1f", "\x7f", "],[", '"],["', "\\u0041",
    '"merges": [', "\u2028", "é", "東", "🙂",
)  # fmt: skip


def pretty(merges: list[Any]) -> bytes:
    """As the tokenizers library writes a file."""
    stored = {**STORED, "model": {**STORED["model"], "merges": merges}}
    return json.dumps(stored, indent=2, ensure_ascii=False).encode()


@pytest.fixture(params=["pairs", "joined"])
def merges(request: pytest.FixtureRequest) -> list[Any]:
    joined = request.param == "joined"
    pairs = [[left, right] for left in ODD for right in ODD]
    return [" ".join(pair) for pair in pairs] if joined else pairs


def test_every_merge_has_its_rank(merges: list[Any]) -> None:
    split = split_merges(pretty(merges))
    assert split is not None
    rest, ranks = split
    assert json.loads(rest) == {**STORED, "model": {**STORED["model"], "merges": []}}
    parsed = rank_merges(merges)
    assert [ranks.rank(left, right) for left in ODD for right in ODD] == list(range(len(ODD) ** 2))
    assert [parsed.rank(left, right) for left in ODD for right in ODD] == list(range(len(ODD) ** 2))
    assert ranks.rank("a", "b") is None


def test_the_library_writes_files_in_this_form(tmp_path: Path) -> None:
    tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json")).save(str(tmp_path / "tokenizer.json"))
    split = split_merges((tmp_path / "tokenizer.json").read_bytes())
    assert split is not None
    assert len(split[1].ranks) == len(STORED["model"]["merges"])


def test_any_other_form_is_left_to_the_parser() -> None:
    good = pretty([["a", "b"], ["<c>", "<d>"], ["e", "f"]])
    assert split_merges(good) is not None
    changes = {
        b'"<c>"': (b'"\\u0063"', b'"\\/c"', b"<c>", b'"<c>" ', b'"<c>", "x"', b'"c\nd"', b'["<c>"]', b"1"),
        b'"<d>"\n      ],': (b'"<d>"\n      ]', b'"<d>"\n      ],,', b'"<d>"\n      ], 7,', b'"<d>"],'),
        b'"merges": [': (b'"merges":[', b'"Merges": ['),
    }
    for old, others in changes.items():
        assert good.count(old) == 1
        for new in others:
            assert split_merges(good.replace(old, new)) is None, new
    assert split_merges(json.dumps(STORED).encode()) is None
    assert split_merges(pretty([])) is None


def test_merges_of_another_object_are_not_the_model_s() -> None:
    stored = {**STORED, "last": {"merges": ["a b", "c d"]}}
    read, ranks = _read(json.dumps(stored, indent=2, ensure_ascii=False).encode())
    assert read == stored
    assert len(ranks.ranks) == len(STORED["model"]["merges"])
