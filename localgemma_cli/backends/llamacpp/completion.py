"""One request to llama.cpp, which runs in a thread of its own, and the token ids of its answer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from threading import Event as Cancel
from threading import Thread
from typing import Any

from localgemma_cli.prompts.tokenizer import Tokenizer
from localgemma_cli.sampling import Sampling

Chunk = dict[str, Any]
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # a space, in the vocabulary
_SEEDS = 2**32 - 1  # llama.cpp's seeds have 32 bits, and the last one means a random seed


def completion_request(prompt: Sequence[int], sampling: Sampling, limit: int) -> dict[str, object]:
    """The request for an answer of at most `limit` tokens, sampled as `generation/sampler.py` samples."""
    return {
        "prompt": [list(prompt)],
        "max_tokens": limit,
        "stream": True,
        "cache_prompt": True,
        "return_progress": True,
        "logprobs": 1,  # each chunk then has the token's id
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "min_p": sampling.min_p or 0.0,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": len(prompt) + limit,
        **({} if sampling.seed is None else {"seed": sampling.seed % _SEEDS}),
    }


class Completion:
    """The chunks of one answer. `close` ends it and waits until llama.cpp computes no more."""

    def __init__(self, server: Any, request: Mapping[str, object], cancel: Cancel) -> None:
        self._chunks = SimpleQueue[Chunk | BaseException | None]()
        self._cancel, self._closed = cancel, False
        self._thread = Thread(target=self._run, args=(server, dict(request)), name="llama.cpp", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Chunk]:
        while (chunk := self._chunks.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def close(self) -> None:
        self._closed = True
        self._thread.join()

    def _run(self, server: Any, request: dict[str, object]) -> None:
        try:
            server.handle_completions(request, self._receive)
        except BaseException as error:  # raised again by the thread that reads the chunks
            self._chunks.put(error)
        self._chunks.put(None)

    def _receive(self, chunk: Chunk) -> bool:
        """Called for every chunk; True stops llama.cpp."""
        self._chunks.put(chunk)
        return self._closed or self._cancel.is_set()


def chunk_ids(entry: Mapping[str, Any], tokenizer: Tokenizer) -> list[int] | None:
    """The ids of one chunk from its `logprobs` entry; None if they cannot be known.

    llama.cpp holds back tokens until a character is complete. `id` is that of the last token, and `bytes` are
    those of all of them; the earlier ones are tokens of one byte each.
    """
    last, data = int(entry["id"]), bytes(entry["bytes"])
    earlier = data.removesuffix(_token_bytes(tokenizer.token_of(last) or ""))
    ids = [tokenizer.id_of(f"<0x{byte:02X}>") for byte in earlier if byte > 0x7F]  # parts of a character
    known = [each for each in ids if each is not None]
    return [*known, last] if len(known) == len(earlier) else None


def _token_bytes(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace(_SPACE, " ").encode()
