"""The tokenizer of a GGUF file, built from the vocabulary in its header; no package for GGUF is needed.

Gemma's is a byte-pair encoding as SentencePiece trains it. Files of the "llama" kind list no merges: they
follow from the order of the tokens. The ids are those of transformers (5.23, integrations/gguf), but for runs
of more spaces than one token has: they are split as llama.cpp splits them.
Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#ggml
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from localgemma_cli.models.gguf_header import Gguf, read_gguf
from localgemma_cli.prompts.partial_bpe import BYTE_TOKENS, PartialBpe, PartialTokenizer, gemma_bpe
from localgemma_cli.prompts.tokenizer import GEMMA_NAMES, SPACE, Tokenizer, TokenizerSettings, build_tokenizer

_CONTROL, _USER_DEFINED = 3, 4  # token types
_KINDS = ("llama", "gemma4")
_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def read_gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises as `read_gguf` does, and ValueError for a vocabulary that is not Gemma's.
    """
    file, tokens, vocabulary, settings = _read(path)
    if _kind(file) == "gemma4":
        return whole_tokenizer(path)
    unknown = settings.names["unk_token"] or "<unk>"
    added = (token.content for token in settings.added_tokens)
    names = (name for name in settings.names.values() if name)
    kept = {*BYTE_TOKENS, unknown, *GEMMA_NAMES.values(), *names, *added} & vocabulary.keys()
    named = {token: vocabulary[token] for token in kept}
    small = build_tokenizer(_library(gemma_bpe(named, [], unknown)), settings)
    encoder = PartialBpe(
        small.library,
        vocabulary,
        BYTE_TOKENS | {unknown},
        lambda part: gemma_bpe(part, list(_merges(part)), unknown),
    )
    return PartialTokenizer(small.library, small.names, small.templates, tokens, vocabulary, encoder)


def whole_tokenizer(path: Path) -> Tokenizer:
    """The same, with all merges in one library object, which can be saved; seconds for a large vocabulary."""
    file, _, vocabulary, settings = _read(path)
    listed = _kind(file) == "gemma4"
    merges = map(_split_merge, file.texts("tokenizer.ggml.merges")) if listed else _merges(vocabulary)
    model = gemma_bpe(vocabulary, list(merges), settings.names["unk_token"] or "<unk>")
    return build_tokenizer(_library(model), settings)


def _read(path: Path) -> tuple[Gguf, list[str], dict[str, int], TokenizerSettings]:
    """The header, the tokens by id, their ids, and the settings."""
    file = read_gguf(path)
    kind, types = _kind(file), file.numbers("tokenizer.ggml.token_type")
    tokens = file.texts("tokenizer.ggml.tokens")
    stored = {
        at: tokens[at] for at, each in enumerate(types[: len(tokens)]) if each in (_CONTROL, _USER_DEFINED)
    }
    if kind == "llama":  # runs of spaces are stored as spaces
        tokens = [SPACE * len(token) if _is_run(token) else token for token in tokens]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    template = file.values.get("tokenizer.chat_template")
    settings = TokenizerSettings(
        _special_names(file, tokens),
        tuple(_added_tokens(stored, types, vocabulary)),
        {"default": template} if isinstance(template, str) else {},
    )
    return file, tokens, vocabulary, settings


def _kind(file: Gguf) -> str:
    """`llama`, or `gemma4` whose merges are listed; ValueError for others."""
    kind = file.values.get("tokenizer.ggml.model")
    if kind not in _KINDS:
        raise ValueError(f"tokenizer.ggml.model must be {' or '.join(_KINDS)} (got {kind!r})")
    return str(kind)


def _library(model: BPE) -> tokenizers.Tokenizer:
    """Gemma's own tokenizer.json around another model."""
    library = tokenizers.Tokenizer(model)
    library.normalizer = normalizers.Replace(" ", SPACE)
    library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    library.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
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
    return " " in token and token.isspace()


def _split_merge(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _special_names(file: Gguf, tokens: Sequence[str]) -> dict[str, str | None]:
    """None where the file does not give a token's id; IndexError for an id beyond the vocabulary."""
    ids = {name: file.values.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMES.items()}
    return {name: tokens[index] if isinstance(index, int) else None for name, index in ids.items()}


def _added_tokens(
    stored: Mapping[int, str], types: Sequence[float], vocabulary: Mapping[str, int]
) -> Iterator[AddedToken]:
    """Control and user-defined tokens, matched whole in a text, the longest first; `stored`: by id."""
    for index, token in stored.items():
        if types[index] == _USER_DEFINED and _is_run(token) and SPACE * len(token) in vocabulary:
            yield AddedToken(SPACE * len(token), normalized=True)  # as spaces are after normalization
        if token in vocabulary:
            yield AddedToken(token, normalized=False, special=types[index] == _CONTROL)
