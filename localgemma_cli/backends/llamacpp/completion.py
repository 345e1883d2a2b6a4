"""One request to llama.cpp, and the token ids of its answer."""

from collections.abc import Generator, Sequence
from contextlib import suppress
from threading import Event as Cancel

from localgemma_cli.backends.answer_stream import AnswerBroken, AnswerText
from localgemma_cli.backends.llamacpp.process import LlamaEnded, LlamaProcess, Reply
from localgemma_cli.backends.scored_token import ScoredToken
from localgemma_cli.events import Reading
from localgemma_cli.prompts.grammar import grammar_of
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.tokenizer import Tokenizer
from localgemma_cli.sampling import Sampling

_SEEDS = 2**32 - 1  # llama.cpp's seeds have 32 bits, and the last one means a random seed
_LOOK_SECONDS = 0.05


def completion_request(prompt: Sequence[int], sampling: Sampling, limit: int) -> dict[str, object]:
    """The request for an answer of at most `limit` tokens, sampled as `generation/sampler.py` samples."""
    return {
        "prompt": [list(prompt)],
        "max_tokens": limit,
        "stream": True,
        "cache_prompt": True,
        "return_progress": True,
        # Each chunk then has the token's id. Before sampling, it costs a sort of all logits.
        "logprobs": max(sampling.logprobs or 0, 1),
        "post_sampling_probs": sampling.logprobs is None,
        **_samplers(sampling),
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": len(prompt) + limit,
        **({} if sampling.constraint is None else {"grammar": grammar_of(sampling.constraint)}),
        **({} if sampling.seed is None else {"seed": sampling.seed % _SEEDS}),
    }


def _samplers(sampling: Sampling) -> dict[str, object]:
    """The highest tokens first, which spares the rest of the vocabulary the others."""
    if sampling.temperature == 0:
        return {"samplers": ["penalties", "top_k"], "top_k": 1}
    return {
        "samplers": ["penalties", "top_k", "temperature", "top_p", "min_p"],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "min_p": sampling.min_p or 0.0,
    }


class Completion:
    """One answer; `cached` is how many tokens of its prompt were in the KV cache."""

    def __init__(self, process: LlamaProcess, prompter: Prompter, cancel: Cancel, sampling: Sampling) -> None:
        self.text = AnswerText(prompter, prompter.stop_ids, sampling)
        self.cached = 0
        self._process, self._tokenizer, self._cancel = process, prompter.tokenizer, cancel
        self._running = False
        self.scored: list[ScoredToken | None] = []  # each token, if asked for; None: llama.cpp held it back

    def tokens(self, request: dict[str, object]) -> Generator[Reading | int | str]:
        """The progress of the prompt, then ids; text for a token whose ids are unknown.

        Closing it stops llama.cpp, and waits until it computes no more. Raises AnswerBroken.
        """
        self._process.send(request)
        self._running, stopping = True, False
        try:
            while self._running:
                if self._cancel.is_set() and not stopping:
                    self._process.send({"cancel": True})
                    stopping = True
                match self._reply():
                    case [int(last), list(data), *scores]:
                        ids = chunk_ids(last, bytes(data), self._tokenizer)
                        if scores:
                            self.scored += [*[None] * (len(ids or (last,)) - 1), _scored(last, *scores)]
                        yield from (bytes(data).decode("utf-8", "replace"),) if ids is None else ids
                    case {"read": [int(cached), int(done), int(total)]}:
                        self.cached = cached
                        yield Reading(done, total)
                    case {"done": reason, "cached": int(cached)}:
                        self.cached = cached
                        if reason == "stop":  # also at an end token that only llama.cpp knows
                            self.text.has_ended = True
                    case {"failed": why}:
                        raise AnswerBroken(f"llama.cpp stopped: {why}.", "Send it again to retry.")
        finally:
            if self._running:
                self._process.send({"cancel": True})
            with suppress(AnswerBroken):
                while self._running:
                    self._reply()

    def _reply(self) -> Reply | None:
        try:
            reply = self._process.reply(_LOOK_SECONDS)
        except LlamaEnded as error:
            self._running = False
            raise AnswerBroken(
                f"llama.cpp stopped unexpectedly ({error}).",
                "Send it again: the model is then loaded again. If memory was full, use a shorter --context.",
            ) from error.__cause__
        if isinstance(reply, dict) and not reply.keys().isdisjoint(("done", "failed")):
            self._running = False
        return reply


def _scored(token: int, logprob: float, top: list[list[float]]) -> ScoredToken:
    return ScoredToken(token, logprob, tuple((int(id), value) for id, value in top))


def chunk_ids(last: int, data: bytes, tokenizer: Tokenizer) -> list[int] | None:
    """The ids of one token and of those held back before it; None if they cannot be known.

    llama.cpp holds back tokens until a character is complete. `last` is the id of the last token, and `data`
    the text of all of them in UTF-8; the earlier ones are tokens of one byte each.
    """
    earlier = data.removesuffix(tokenizer.bytes_of(last))
    ids = [tokenizer.id_of(f"<0x{byte:02X}>") for byte in earlier if byte > 0x7F]  # parts of a character
    known = [each for each in ids if each is not None]
    return [*known, last] if len(known) == len(earlier) else None
