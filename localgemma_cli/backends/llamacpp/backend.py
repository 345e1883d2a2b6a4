"""The backend that runs a GGUF file with llama.cpp. Implements `backends.base.Backend`."""

import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event as Cancel

from localgemma_cli.backends.answer_stream import (
    AnswerBroken,
    answer_events,
    answer_limit,
    check_room,
    stopped_before_reading,
)
from localgemma_cli.backends.choices import choose
from localgemma_cli.backends.llamacpp.completion import Completion, completion_request
from localgemma_cli.backends.llamacpp.parameters import server_parameters
from localgemma_cli.backends.llamacpp.process import LlamaProcess
from localgemma_cli.backends.llamacpp.scoring import score_answer, score_next
from localgemma_cli.backends.scored_token import describe_token
from localgemma_cli.constraint import Choices, Constraint
from localgemma_cli.conversation import Message
from localgemma_cli.events import Delta, Event, Finished, LoadProgress, ProgressSink, RateMeter, TokenLogprob
from localgemma_cli.models.own_models import AUTO
from localgemma_cli.planning.plan import LoadPlan
from localgemma_cli.prompts.answer_value import answer_value
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer
from localgemma_cli.sampling import Sampling


class LlamaCppBackend:
    """A GGUF file in llama.cpp, with the KV cache of one conversation.

    A process that has ended is started again, with the same `parameters`, for the next answer.
    """

    name = "local"
    continues = True

    def __init__(
        self, plan: LoadPlan, process: LlamaProcess, prompter: Prompter, parameters: Mapping[str, object]
    ) -> None:
        self.plan = plan
        self.context_length = plan.context_length
        self.note = prompter.note
        self._process, self._prompter, self._parameters = process, prompter, parameters

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """See `Backend.stream`."""
        if isinstance(sampling.constraint, Choices):
            choices = sampling.constraint.choices
            scores = partial(self.score, messages, choices)
            yield from choose(scores, self._prompter, messages, choices, sampling, cancel)
            return
        meter = RateMeter()
        prompt = self._prompter.encode(messages)
        self._reload(cancel)
        if cancel.is_set():
            raise stopped_before_reading()
        limit = answer_limit(self.context_length, len(prompt), sampling.max_new_tokens)
        answer = Completion(self._process, self._prompter, cancel, sampling)
        tokens = answer.tokens(completion_request(prompt, sampling, limit))
        wanted = sampling.logprobs
        logprobs = None if wanted is None else partial(self._logprobs, answer, prompt, wanted)
        events = answer_events(
            tokens, answer.text, meter, len(prompt), lambda: answer.cached, cancel, logprobs
        )
        yield from events if sampling.constraint is None else check_form(events, sampling.constraint)

    def count(self, messages: Sequence[Message]) -> int:
        return len(self._prompter.encode(messages))

    def recognizes(self, answer: Message) -> bool:
        return self._prompter.recognizes(answer)

    def prompt(self, messages: Sequence[Message]) -> str:
        return self._prompter.text(messages)

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """See `Backend.score`. Also raises AnswerBroken where llama.cpp ends."""
        prompt = self._prompter.encode(messages)
        encoded = [self._prompter.encode_answer(answer) for answer in answers]
        check_room(self.context_length, len(prompt) + max(map(len, encoded), default=0))
        self._reload(Cancel())
        return [score_answer(self._process, self._prompter, prompt, answer) for answer in encoded]

    def _logprobs(
        self, answer: Completion, prompt: Sequence[int], alternatives: int, count: int
    ) -> list[TokenLogprob] | None:
        """Those of the first `count` tokens; None where llama.cpp ends.

        Tokens that it held back are scored now.
        """
        ids = [*prompt, *(answer.text.token_ids or ())]
        try:
            scored = [
                each or score_next(self._process, self._prompter, ids[:at], ids[at], alternatives)
                for at, each in enumerate(answer.scored[:count], len(prompt))
            ]
        except AnswerBroken:
            return None
        shown = (replace(each, top=each.top[:alternatives]) for each in scored)
        return [describe_token(each, self._prompter.tokenizer) for each in shown]

    def _reload(self, cancel: Cancel) -> None:
        def stop(_: LoadProgress) -> None:
            if cancel.is_set():
                raise stopped_before_reading()

        if self._process.has_ended:
            self._process = LlamaProcess(self._parameters)
            self._process.load(stop)


def check_form(events: Iterator[Event], constraint: Constraint) -> Iterator[Event]:
    """The events of an answer; one that breaks the constraint ends with an error.

    llama.cpp continues without a grammar in which it finds no next token.
    """
    text = []
    for event in events:
        if isinstance(event, Delta):
            text.append(event.text)
        elif isinstance(event, Finished) and event.finish_reason == "stop":
            try:
                answer_value(constraint, "".join(text))
            except ValueError as why:
                error = AnswerBroken(f"llama.cpp did not keep to the form: {why}.", "Use a simpler form.")
                event = replace(event, finish_reason="error", error=error)
        yield event


def _return_freed_memory() -> None:
    """Return to the system what reading the vocabulary has freed, which glibc would keep."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def load_backend(plan: LoadPlan, path: Path, progress: ProgressSink, template: str = AUTO) -> LlamaCppBackend:
    """Load the GGUF file. Raises as `LlamaProcess`, and NotFoundError for the tokenizer."""
    parameters = server_parameters(plan, path)
    process = LlamaProcess(parameters)  # loads while the tokenizer is read
    try:
        progress(LoadProgress("reading the tokenizer"))
        prompter = Prompter(load_tokenizer(path), template, plan.model.form)
        _return_freed_memory()
    except BaseException:
        process.close()
        raise
    process.load(progress)
    return LlamaCppBackend(plan, process, prompter, parameters)
