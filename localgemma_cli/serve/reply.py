"""The objects of an answer as OpenAI's API writes them: whole, or in chunks."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from localgemma_cli import __version__
from localgemma_cli.events import Finished, TokenLogprob, Usage

_FINGERPRINT = f"localgemma-{__version__}"


@dataclass(frozen=True)
class ReplyForm:
    """The names by which two kinds of answer differ."""

    prefix: str
    whole: str
    chunk: str
    is_chat: bool


CHAT = ReplyForm("chatcmpl", "chat.completion", "chat.completion.chunk", True)
TEXT = ReplyForm("cmpl", "text_completion", "text_completion", False)


@dataclass(frozen=True)
class Reply:
    """One answer's objects; they share an id and a time."""

    form: ReplyForm
    model: str
    include_usage: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self) -> dict[str, object] | None:
        """The first chunk, which names the role."""
        return self._chunk({"role": "assistant", "content": ""}) if self.form.is_chat else None

    def piece(self, text: str) -> dict[str, object]:
        return self._chunk({"content": text}, text)

    def thought(self, text: str) -> dict[str, object]:
        """Thinking, under the name that vLLM and llama.cpp give it."""
        return self._chunk({"reasoning_content": text})

    def ending(self, finished: Finished) -> dict[str, object]:
        return self._chunk({}, finished=finished)

    def usage(self, usage: Usage) -> dict[str, object]:
        """The chunk after the last one, for clients that ask for it."""
        return {**self._head(self.form.chunk), "choices": [], "usage": usage_object(usage)}

    def whole(self, text: str, thoughts: str, finished: Finished) -> dict[str, object]:
        message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
        if thoughts:
            message["reasoning_content"] = thoughts
        content: Mapping[str, object] = {"message": message} if self.form.is_chat else {"text": text}
        choice = {"index": 0, **content, **self._end(finished)}
        return {
            **self._head(self.form.whole),
            "choices": [choice],
            "usage": usage_object(finished.usage),
        }

    def _chunk(
        self, delta: Mapping[str, object], text: str = "", finished: Finished | None = None
    ) -> dict[str, object]:
        content: Mapping[str, object] = {"delta": delta} if self.form.is_chat else {"text": text}
        choice = {"index": 0, **content, **self._end(finished)}
        usage = {"usage": None} if self.include_usage else {}
        return {**self._head(self.form.chunk), "choices": [choice], **usage}

    def _end(self, finished: Finished | None) -> dict[str, object]:
        """How the answer ended; in a stream the last chunk has the log-probabilities of all tokens."""
        if finished is None:
            return {"logprobs": None, "finish_reason": None}
        entries = finished.logprobs
        shown = None if entries is None else (chat_logprobs if self.form.is_chat else text_logprobs)(entries)
        return {"logprobs": shown, "finish_reason": finished.finish_reason}

    def _head(self, kind: str) -> dict[str, object]:
        return {
            "id": f"{self.form.prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": _FINGERPRINT,
        }


def chat_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, object]:
    return {
        "content": [
            {**_entry(each), "top_logprobs": [_entry(top) for top in each.top_logprobs]} for each in entries
        ],
        "refusal": None,
    }


def text_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, object]:
    """The form of /v1/completions: a list for each kind of value."""
    ends = list(accumulate(len(each.token) for each in entries))
    return {
        "tokens": [each.token for each in entries],
        "token_logprobs": [each.logprob for each in entries],
        "top_logprobs": [{top.token: top.logprob for top in each.top_logprobs} for each in entries],
        "text_offset": [0, *ends[:-1]][: len(entries)],
    }


def _entry(token: TokenLogprob) -> dict[str, object]:
    data = None if token.bytes is None else list(token.bytes)
    return {"token": token.token, "logprob": token.logprob, "bytes": data}


def usage_object(usage: Usage) -> dict[str, object] | None:
    """None where a server behind this one does not count tokens."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is None or completion is None:
        return None
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens or 0},
    }
