"""From generated tokens to the events of an answer, for every engine that runs in this process."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from threading import Event as Cancel

from localgemma_cli.conversation import FinishReason
from localgemma_cli.errors import ContextOverflowError, InterruptedAnswer, LocalGemmaError
from localgemma_cli.events import Delta, Event, Finished, RateMeter, Reading, TokenLogprob, Usage
from localgemma_cli.prompts.detokenizer import Detokenizer
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.stop_strings import StopStrings
from localgemma_cli.sampling import Sampling

_ANSWER_ROOM = 256  # tokens that a prompt must leave free, or a quarter of a small context


class AnswerBroken(LocalGemmaError):
    """An engine that ended within an answer; what came before is kept."""


def stopped_before_reading() -> InterruptedAnswer:
    return InterruptedAnswer("Stopped before the prompt was read.", "Send it again to retry.")


def answer_limit(context: int, prompt_tokens: int, wanted: int | None) -> int:
    """The most tokens the answer may have; ContextOverflowError where that is too few."""
    room = context - prompt_tokens
    if room < min(wanted or _ANSWER_ROOM, _ANSWER_ROOM, context // 4):
        raise ContextOverflowError(
            f"The conversation has {prompt_tokens} tokens, which leaves too little room for an answer in"
            f" the context of {context}.",
            "Shorten the prompt.",
        )
    return min(wanted, room) if wanted else room


def check_room(context: int, tokens: int) -> None:
    """ContextOverflowError where a prompt and its answer have more `tokens` than the context holds."""
    if tokens > context:
        raise ContextOverflowError(
            f"The prompt and the answer have {tokens} tokens, more than the context of {context}.",
            "Shorten them.",
        )


def answer_events(
    tokens: Generator[Reading | int | str],
    text: "AnswerText",
    meter: RateMeter,
    prompt_tokens: int,
    cached_tokens: Callable[[], int],
    cancel: Cancel,
    logprobs: Callable[[int], Sequence[TokenLogprob] | None] | None = None,
) -> Iterator[Event]:
    """The progress of the prompt and the answer's text, up to a stop token or string, then `Finished`.

    `tokens`: the progress of the prompt, then ids, or text where an engine does not report its ids.
    `cached_tokens`: how many tokens of the prompt were in the KV cache; called at the end.
    `logprobs`: where they are asked for, those of so many of the first tokens; called at the end.
    Raises AnswerBroken from `tokens` before the first of them; later, it ends the answer.
    """
    failure: AnswerBroken | None = None
    with closing(tokens):
        try:
            for token in tokens:
                if isinstance(token, Reading):
                    yield token
                    continue
                meter.tick()
                piece = text.add_text(token) if isinstance(token, str) else text.add(token)
                if piece:
                    yield Delta(piece)
                if text.has_ended:
                    break
        except AnswerBroken as error:
            if not meter.ticks:
                raise
            failure = AnswerBroken(f"{error.message} The answer is incomplete.", error.hint)
            failure.__cause__ = error.__cause__
    if rest := text.finish():
        yield Delta(rest)
    usage = Usage(prompt_tokens, cached_tokens(), meter.ticks)
    reason: FinishReason = "error" if failure else _finish_reason(text.has_ended, cancel)
    timing, ids = meter.timing(meter.ticks), text.token_ids
    scores = None if logprobs is None or ids is None else logprobs(len(ids))
    yield Finished(reason, usage, timing, ids, failure, None if scores is None else tuple(scores))


class AnswerText:
    """The text of one answer from its token ids, up to a stop token or a stop string."""

    def __init__(self, prompter: Prompter, stop_ids: frozenset[int], sampling: Sampling) -> None:
        self._stop_ids = stop_ids
        self._detokenizer = Detokenizer(prompter.tokenizer)
        self._stop_text = StopStrings(() if sampling.constraint else prompter.stops)  # they may occur in JSON
        self._ids: list[int] = []
        self._whole = 0  # ids up to the last whole character
        self._knows_ids = True
        self.has_ended = False

    def add(self, token: int) -> str:
        """The text that is certain by now; may be empty."""
        if token in self._stop_ids:
            self.has_ended = True
            return ""
        self._ids.append(token)
        text = self._stop_text.add(self._detokenizer.step(token))
        if not self._detokenizer.is_open:
            self._whole = len(self._ids)
        self.has_ended = self._stop_text.found
        return text

    def add_text(self, text: str) -> str:
        """`add` for text whose ids are unknown."""
        self._knows_ids = False
        shown = self._stop_text.add(self._detokenizer.flush() + text)
        self.has_ended = self._stop_text.found
        return shown

    def finish(self) -> str:
        """The rest of the text; an answer that can be continued ends with a whole character."""
        end = self._detokenizer.flush() if self.has_ended else self._detokenizer.complete_text()
        return "" if self._stop_text.found else self._stop_text.rest(end)

    @property
    def token_ids(self) -> tuple[int, ...] | None:
        """The ids of the text, without the stop token or string; None if unknown; only after `finish`."""
        if not self._knows_ids:
            return None
        return tuple(self._ids[: self._stop_text.tokens if self.has_ended else self._whole])


def _finish_reason(has_ended: bool, cancel: Cancel) -> FinishReason:
    if has_ended:
        return "stop"
    return "interrupted" if cancel.is_set() else "length"
