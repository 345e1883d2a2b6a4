"""Gemma's tokenizer.json without building its half a million merges: those of a text are enough for its ids.

The tokenizers library takes twice as long to build all of them as Python takes to read the file.
"""

import gc
import json
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers.models import BPE

from localgemma_cli.prompts.merge_ranks import MergeRanks, rank_merges, split_merges
from localgemma_cli.prompts.partial_bpe import BYTE_TOKENS, PartialBpe, PartialTokenizer, gemma_bpe
from localgemma_cli.prompts.tokenizer import GEMMA_NAMES, SPACE, Tokenizer, TokenizerSettings, build_tokenizer

# A merge joins characters of the text only with these; what else Gemma's files have in common.
_FORM: Mapping[str, Any] = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    "pre_tokenizer": {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    },
}
_MODEL: Mapping[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
    "byte_fallback": True,
    "ignore_merges": False,
}


def read_partial_tokenizer(data: bytes, settings: TokenizerSettings) -> Tokenizer | None:
    """The tokenizer of a tokenizer.json; None where it is not of Gemma's form, or damaged."""
    gc.disable()  # it would look at the list of merges again and again
    try:
        stored, ranks = _read(data)
        parts = _parts(stored, settings)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # the library says what is wrong
    finally:
        gc.enable()
    return None if parts is None else _assemble(stored, *parts, ranks, settings)


def _read(data: bytes) -> tuple[dict[str, Any], MergeRanks]:
    """The file, perhaps without its merges, and these."""
    if split := split_merges(data):
        stored = json.loads(split[0])
        if not stored["model"]["merges"]:  # else those were another object's
            return stored, split[1]
    stored = json.loads(data)
    return stored, rank_merges(stored["model"]["merges"])


def _parts(
    stored: dict[str, Any], settings: TokenizerSettings
) -> tuple[dict[str, int], frozenset[str]] | None:
    """Ids by token in their order, and the tokens that are matched whole."""
    model = stored["model"]
    if any(stored[key] != value for key, value in _FORM.items()):
        return None
    if any(model[key] != value for key, value in _MODEL.items()):
        return None
    vocabulary: dict[str, int] = model["vocab"]
    if list(vocabulary.values()) != list(range(len(vocabulary))) or model["unk_token"] not in vocabulary:
        return None
    names = {name for name in settings.names.values() if name} | vocabulary.keys() & GEMMA_NAMES.values()
    added = {each["content"]: each["id"] for each in stored["added_tokens"]}
    whole = frozenset((*added, *names, *(token.content for token in settings.added_tokens)))
    if not whole <= vocabulary.keys() or any(vocabulary[token] != at for token, at in added.items()):
        return None
    return vocabulary, whole


def _assemble(
    stored: dict[str, Any],
    vocabulary: dict[str, int],
    whole: frozenset[str],
    ranks: MergeRanks,
    settings: TokenizerSettings,
) -> Tokenizer:
    unknown = stored["model"]["unk_token"]
    always = BYTE_TOKENS | {unknown}
    named = {token: vocabulary[token] for token in (whole | always) & vocabulary.keys()}
    frame = {**stored, "model": {**stored["model"], "vocab": named, "merges": []}}
    small = build_tokenizer(tokenizers.Tokenizer.from_str(json.dumps(frame)), settings)

    def build(part: Mapping[str, int]) -> BPE:
        merges = [pair for _, pair in sorted(_ranked(part, ranks))]
        return gemma_bpe(part, merges, unknown)

    encoder = PartialBpe(small.library, vocabulary, always, build)
    return PartialTokenizer(
        small.library, small.names, small.templates, list(vocabulary), vocabulary, encoder
    )


def _ranked(part: Mapping[str, int], merges: MergeRanks) -> Iterator[tuple[int, tuple[str, str]]]:
    """The merges of two tokens of `part` into a third, each with its rank."""
    for token in part:
        for middle in range(1, len(token)):
            left, right = token[:middle], token[middle:]
            rank = merges.rank(left, right) if left in part and right in part else None
            if rank is not None:
                yield rank, (left, right)
