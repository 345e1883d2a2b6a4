"""Text to token ids and back, for every engine, with the tokenizers library alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import tokenizers
from tokenizers import AddedToken

SPACE = "\u2581"  # a space, in the vocabulary
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # a byte of a character that has no token
# What GemmaTokenizer assumes where tokenizer_config.json does not name a token.
GEMMA_NAMES = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


def encode_plain(library: tokenizers.Tokenizer, text: str) -> list[int]:
    """The ids of plain text: the name of a special token in it is split like any other text."""
    library.encode_special_tokens = True
    # A batch of one, because `encode` would block Ctrl-C and the spinner: it holds the interpreter lock.
    (encoded,) = library.encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = encoded.ids
    return ids


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and its chat templates.

    `library`: the tokenizers library's own object, without truncation, padding or a post-processor in use.
    `names`: the special tokens by the attribute that chat templates know them by, such as `bos_token`.
    `templates`: the chat templates by name; the one in use is `default`.
    """

    library: tokenizers.Tokenizer
    names: Mapping[str, str]
    templates: Mapping[str, str]

    def encode(self, text: str) -> list[int]:
        """The ids of plain text: the name of a special token in it is split like any other text."""
        return encode_plain(self.library, text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, without special tokens."""
        return str(self.library.decode(ids, skip_special_tokens=True))

    def id_of(self, token: str) -> int | None:
        found: int | None = self.library.token_to_id(token)
        return found

    def token_of(self, token_id: int) -> str | None:
        found: str | None = self.library.id_to_token(token_id)
        return found

    def bytes_of(self, token_id: int) -> bytes:
        """A token's text in UTF-8, or the byte that it is; empty for an id without a token."""
        token = self.token_of(token_id) or ""
        byte = BYTE_TOKEN.fullmatch(token)
        return bytes.fromhex(byte[1]) if byte else token.replace(SPACE, " ").encode()

    @property
    def size(self) -> int:
        """How many tokens there are, added tokens included; ids are below this."""
        return int(self.library.get_vocab_size())

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token's id, added tokens included."""
        return dict(self.library.get_vocab())

    @property
    def added_tokens(self) -> dict[str, bool]:
        """The tokens that are matched whole in a text, each with whether it is special."""
        return {each.content: each.special for each in self.library.get_added_tokens_decoder().values()}

    @property
    def bos(self) -> str | None:
        return self.names.get("bos_token")

    @cached_property
    def eos_id(self) -> int | None:
        eos = self.names.get("eos_token")
        return None if eos is None else self.id_of(eos)

    @property
    def template(self) -> str | None:
        """The default chat template."""
        return self.templates.get("default") or None

    def mark_special(self, tokens: frozenset[str]) -> None:
        """Make added tokens special in the library: `encode` splits the names of special tokens only."""
        missing = [name for name, special in self.added_tokens.items() if not special and name in tokens]
        if missing:
            marked = [AddedToken(name, special=True, normalized=False) for name in missing]
            self.library.add_special_tokens(marked)


@dataclass(frozen=True)
class TokenizerSettings:
    """What the small files beside tokenizer.json define.

    `names`: special tokens by attribute, such as `bos_token`; None for one that a file sets to null.
    `added_tokens`: tokens to match whole in a text, in the order of their ids. `templates`: by name.
    """

    names: Mapping[str, str | None]
    added_tokens: tuple[AddedToken, ...]
    templates: Mapping[str, str]


def build_tokenizer(library: tokenizers.Tokenizer, settings: TokenizerSettings) -> Tokenizer:
    """The tokenizer with the tokens added that the settings name and the library's object lacks."""
    assumed = {key: name for key, name in GEMMA_NAMES.items() if library.token_to_id(name) is not None}
    names = {key: name for key, name in {**assumed, **settings.names}.items() if name is not None}
    known = {each.content for each in library.get_added_tokens_decoder().values()}
    # all at once: the library rebuilds its matcher at every call
    library.add_tokens([token for token in settings.added_tokens if token.content not in known])
    library.add_special_tokens([AddedToken(name, normalized=False) for name in names.values()])
    library.no_truncation()
    library.no_padding()
    return Tokenizer(library, names, settings.templates)
