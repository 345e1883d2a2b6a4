"""A tokenizer that builds only the part of a large vocabulary that a text can contain.

Only tokens that occur in a text can result from merging parts of it, so a model of those gives the same ids.
It takes milliseconds; all merges of Gemma 3's 262,144 tokens take seconds, and most of a tokenizer's memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from threading import Lock

import tokenizers
from tokenizers.models import BPE

from localgemma_cli.prompts.tokenizer import Tokenizer, encode_plain

BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_LONG = 50_000  # characters; a longer text is worth the whole model
_KEPT = 256  # texts whose ids are kept: those of a conversation are encoded again at every turn


def gemma_bpe(vocabulary: Mapping[str, int], merges: list[tuple[str, str]], unknown: str) -> BPE:
    """The model in Gemma's own tokenizer.json, around another vocabulary."""
    return BPE(vocab=dict(vocabulary), merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)


class PartialBpe:
    """Encodes with `library`, whose model is replaced for each text.

    `always` are tokens that no text contains literally, such as those of single bytes. `build` makes a model
    of part of `vocabulary`, a mapping of tokens to ids.
    """

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        vocabulary: Mapping[str, int],
        always: frozenset[str],
        build: Callable[[Mapping[str, int]], BPE],
    ) -> None:
        self._library, self._vocabulary, self._build = library, vocabulary, build
        self._always = {token: vocabulary[token] for token in always if token in vocabulary}
        self._longest = max(map(len, vocabulary))
        self._whole: BPE | None = None
        self._lock = Lock()
        self._ids = lru_cache(_KEPT)(self._compute_ids)

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, as `Tokenizer.encode`."""
        with self._lock:
            return list(self._ids(text))

    def forget(self) -> None:
        """Drop the ids that are kept, after a change of the library's added tokens."""
        with self._lock:
            self._ids.cache_clear()

    def _compute_ids(self, text: str) -> tuple[int, ...]:
        normalizer = self._library.normalizer
        self._library.model = self._model(normalizer.normalize_str(text) if normalizer else text)
        return tuple(encode_plain(self._library, text))

    def _model(self, text: str) -> BPE:
        if self._whole is None and len(text) > _LONG:
            self._whole = self._build(self._vocabulary)
        return self._whole or self._build(self._always | dict(self._tokens_in(text)))

    def _tokens_in(self, text: str) -> Iterator[tuple[str, int]]:
        """The tokens that occur in the text, with their ids."""
        vocabulary = self._vocabulary
        for start in range(len(text)):
            for end in range(start + 1, min(start + self._longest, len(text)) + 1):
                piece = text[start:end]
                if piece in vocabulary:
                    yield piece, vocabulary[piece]


@dataclass(frozen=True)
class PartialTokenizer(Tokenizer):
    """A tokenizer whose `library` has only the special tokens: all tokens there would take much memory.

    `tokens`: by id. `ids`: by token.
    """

    tokens: Sequence[str]
    ids: Mapping[str, int]
    encoder: PartialBpe

    def encode(self, text: str) -> list[int]:
        return self.encoder.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        tokens = (self.tokens[each] for each in ids if 0 <= each < len(self.tokens))
        return str(self.library.decoder.decode([token for token in tokens if token not in self._special]))

    def id_of(self, token: str) -> int | None:
        return self.ids.get(token)

    def token_of(self, token_id: int) -> str | None:
        return self.tokens[token_id] if 0 <= token_id < len(self.tokens) else None

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def vocabulary(self) -> dict[str, int]:
        return dict(self.ids)

    @cached_property
    def _special(self) -> frozenset[str]:
        return frozenset(token for token, special in self.added_tokens.items() if special)

    def mark_special(self, tokens: frozenset[str]) -> None:
        super().mark_special(tokens)
        self.encoder.forget()
        self.__dict__.pop("_special", None)
