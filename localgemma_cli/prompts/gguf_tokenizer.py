"""The tokenizer of a GGUF file, built from the vocabulary in its header; no package for GGUF is needed.

Gemma's is a byte-pair encoding as SentencePiece trains it. Files of the "llama" kind list no merges: they
follow from the order of the tokens. The ids are those of transformers (5.23, integrations/gguf), but for runs
of more spaces than one token has: they are split as llama.cpp splits them.
Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#ggml
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from localgemma_cli.models.gguf_header import Gguf, read_gguf
from localgemma_cli.prompts.partial_bpe import PartialBpe
from localgemma_cli.prompts.tokenizer import Tokenizer, TokenizerSettings, build_tokenizer

_SPACE = "\u2581"  # a space, in the vocabulary
_CONTROL, _USER_DEFINED = 3, 4  # token types
_KINDS = ("llama", "gemma4")
_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def read_gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises as `read_gguf` does, and ValueError for a vocabulary that is not Gemma's.
    """
    file = read_gguf(path)
    kind = file.values.get("tokenizer.ggml.model")
    if kind not in _KINDS:
        raise ValueError(f"tokenizer.ggml.model must be {' or '.join(_KINDS)} (got {kind!r})")
    stored = tokens = file.texts("tokenizer.ggml.tokens")
    if kind == "llama":  # runs of spaces are stored as spaces
        tokens = [_SPACE * len(token) if _is_run(token) else token for token in stored]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    template = file.values.get("tokenizer.chat_template")
    names = _special_names(file, tokens)
    settings = TokenizerSettings(
        names,
        tuple(_added_tokens(stored, file.numbers("tokenizer.ggml.token_type"), vocabulary)),
        {"default": template} if isinstance(template, str) else {},
    )
    unknown = names["unk_token"] or "<unk>"
    if kind == "gemma4":
        merges = [_split_merge(merge) for merge in file.texts("tokenizer.ggml.merges")]
        return build_tokenizer(_library(_model(vocabulary, merges, unknown)), settings)
    whole = build_tokenizer(_library(_model(vocabulary, [], unknown)), settings)
    byte_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
    kept = frozenset((*byte_tokens, unknown, *(name for name in names.values() if name), *whole.added_tokens))
    named = {token: vocabulary[token] for token in kept if token in vocabulary}
    encoder = PartialBpe(
        build_tokenizer(_library(_model(named, [], unknown)), settings).library,
        vocabulary,
        frozenset((*byte_tokens, unknown)),
        lambda part: _model(part, list(_merges(part)), unknown),
    )
    return replace(whole, encoder=encoder)


def _model(vocabulary: Mapping[str, int], merges: list[tuple[str, str]], unknown: str) -> BPE:
    return BPE(vocab=dict(vocabulary), merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)


def _library(model: BPE) -> tokenizers.Tokenizer:
    """Gemma's own tokenizer.json around another model."""
    library = tokenizers.Tokenizer(model)
    library.normalizer = normalizers.Replace(" ", _SPACE)
    library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    library.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return library


def _merges(vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Every pair of tokens that makes a token, in the order of the tokens made: earlier ones merge first.

    The scores in a file do not follow the order in which Gemma's tokenizer merges; the positions do.
    """
    for token in sorted(vocabulary, key=vocabulary.__getitem__):
        for middle in range(1, len(token)):
            if token[:middle] in vocabulary and token[middle:] in vocabulary:
                yield token[:middle], token[middle:]


def _is_run(token: str) -> bool:
    return bool(token) and token.isspace() and " " in token


def _split_merge(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _special_names(file: Gguf, tokens: Sequence[str]) -> dict[str, str | None]:
    """None where the file does not give a token's id; IndexError for an id beyond the vocabulary."""
    ids = {name: file.values.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMES.items()}
    return {name: tokens[index] if isinstance(index, int) else None for name, index in ids.items()}


def _added_tokens(
    stored: Sequence[str], types: Sequence[float], vocabulary: Mapping[str, int]
) -> Iterator[AddedToken]:
    """Control and user-defined tokens, matched whole in a text, the longest first."""
    for token, kind in zip(stored, types, strict=False):
        if kind == _USER_DEFINED and _is_run(token) and _SPACE * len(token) in vocabulary:
            yield AddedToken(_SPACE * len(token), normalized=True)  # as spaces are after normalization
        if kind in (_CONTROL, _USER_DEFINED) and token in vocabulary:
            yield AddedToken(token, normalized=False, special=kind == _CONTROL)
