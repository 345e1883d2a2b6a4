"""Keeps an answer to its constraint, token by token, with llguidance."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from localgemma_cli.constraint import Constraint
from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.prompts.grammar import grammar_of
from localgemma_cli.prompts.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Words = NDArray[np.uint32]  # 32 tokens each, the lowest bit first
Flags = NDArray[np.bool_]
_BITS = 32


class TokenGrammars:
    """Makes the grammar of each answer; the vocabulary is prepared once, for the first of them."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int]) -> None:
        self._tokenizer, self._stop_ids = tokenizer, sorted(stop_ids)
        self._prepared: LLTokenizer | None = None

    def begin(self, constraint: Constraint) -> "TokenGrammar":
        """The grammar of one answer, before its first token."""
        from llguidance import LLMatcher

        self._prepared = self._prepared or self._prepare()
        return TokenGrammar(LLMatcher(self._prepared, grammar_of(constraint), log_level=0), self._stop_ids)

    def _prepare(self) -> "LLTokenizer":
        from llguidance import LLTokenizer
        from llguidance._tokenizer import TokenizerWrapper

        vocabulary = TokenizerWrapper(_Vocabulary(self._tokenizer, self._stop_ids))
        return LLTokenizer(vocabulary, eos_token=self._stop_ids)


class _Vocabulary:
    """What llguidance's TokenizerWrapper reads."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        special = (tokenizer.id_of(name) for name, flag in tokenizer.added_tokens.items() if flag)
        self.eos_token_id, self.bos_token_id = next(iter(stop_ids)), None
        self.tokens = [tokenizer.bytes_of(token) for token in range(tokenizer.size)]
        self.special_token_ids = sorted({*stop_ids, *(token for token in special if token is not None)})

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


class TokenGrammar:
    """Which tokens may come next in one answer."""

    def __init__(self, matcher: "LLMatcher", stop_ids: Collection[int]) -> None:
        self._matcher, self._stop_ids = matcher, stop_ids
        self._words: Words | None = None  # of the next token, once they are needed

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing can follow it."""
        return self._matcher.is_stopped()

    def allows(self, token: int) -> bool:
        if token in self._stop_ids:
            return self._matcher.is_accepting()
        return self._matcher.validate_tokens([token]) == 1

    def accept(self, token: int) -> None:
        """Note the next token, which is allowed."""
        self._words = None
        if token not in self._stop_ids:
            self._matcher.consume_token(token)
            self._require_sound()

    def words(self) -> Words:
        """A bit per token: whether it may come next."""
        if self._words is None:
            self._words = np.frombuffer(bytearray(self._matcher.compute_bitmask()), np.uint32)
            self._require_sound()
        return self._words

    def forbidden(self, vocabulary: int) -> Flags:
        """Which of so many tokens may not come next."""
        bits = np.unpackbits(~self.words().view(np.uint8), bitorder="little")[:vocabulary]
        if len(bits) < vocabulary:  # a padded embedding
            bits = np.pad(bits, (0, vocabulary - len(bits)), constant_values=1)
        return bits.view(np.bool_)

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            why = " ".join(self._matcher.get_error().partition("<state>")[0].split()).rstrip(".")
            raise LocalGemmaError(
                f"The answer cannot be constrained: {why}.", "Use a simpler schema or regular expression."
            )


def mask_logits(logits: torch.Tensor, grammar: TokenGrammar) -> torch.Tensor:
    """The logits [1, vocabulary] with -inf for what may not come next; nothing waits for the device."""
    words = torch.from_numpy(grammar.words().view(np.int32))
    if logits.device.type == "cuda":
        words = words.pin_memory().to(logits.device, non_blocking=True)
    shifts = torch.arange(_BITS, dtype=torch.int32, device=logits.device)
    allowed = ((words[:, None] >> shifts) & 1).flatten().bool()
    size = logits.shape[1]
    if len(allowed) < size:
        allowed = torch.nn.functional.pad(allowed, (0, size - len(allowed)))
    return logits.masked_fill(~allowed[:size], float("-inf"))
