"""The backend that runs a GGUF file with llama.cpp. Implements `backends.base.Backend`."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event as Cancel
from typing import Any

from localgemma_cli.backends.answer_stream import AnswerText, answer_events, answer_limit
from localgemma_cli.backends.llamacpp.completion import Completion, chunk_ids, completion_request
from localgemma_cli.backends.llamacpp.server import open_server
from localgemma_cli.conversation import Message
from localgemma_cli.errors import InterruptedAnswer, LocalGemmaError
from localgemma_cli.events import Event, LoadProgress, ProgressSink, RateMeter, Reading
from localgemma_cli.models.own_models import AUTO
from localgemma_cli.planning.plan import LoadPlan
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer
from localgemma_cli.sampling import Sampling


class LlamaCppBackend:
    """A GGUF file in llama.cpp, with the KV cache of one conversation."""

    name = "local"
    continues = True

    def __init__(self, plan: LoadPlan, server: Any, prompter: Prompter) -> None:
        self.plan = plan
        self.context_length = plan.context_length
        self.note = prompter.note
        self._server, self._prompter = server, prompter

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """See `Backend.stream`."""
        meter = RateMeter()
        prompt = self._prompter.encode(messages)
        if cancel.is_set():
            raise InterruptedAnswer("Stopped before the prompt was read.", "Send it again to retry.")
        limit = answer_limit(self.context_length, len(prompt), sampling.max_new_tokens)
        answer = _Answer(self._server, self._prompter)
        tokens = answer.tokens(completion_request(prompt, sampling, limit), cancel)
        yield from answer_events(tokens, answer.text, meter, len(prompt), lambda: answer.cached, cancel)

    def count(self, messages: Sequence[Message]) -> int:
        return len(self._prompter.encode(messages))

    def recognizes(self, answer: Message) -> bool:
        return self._prompter.recognizes(answer)

    def prompt(self, messages: Sequence[Message]) -> str:
        return self._prompter.text(messages)


class _Answer:
    """One answer; `cached` is how many tokens of its prompt were in the KV cache."""

    def __init__(self, server: Any, prompter: Prompter) -> None:
        self.text = AnswerText(prompter, prompter.stop_ids)
        self.cached = 0
        self._server, self._tokenizer = server, prompter.tokenizer

    def tokens(self, request: dict[str, object], cancel: Cancel) -> Generator[Reading | int | str]:
        """The progress of the prompt, then ids; text for a chunk whose ids are unknown."""
        with closing(Completion(self._server, request, cancel)) as completion:
            for chunk in completion:
                if "error" in chunk:
                    raise LocalGemmaError(
                        f"llama.cpp stopped: {chunk['error'].get('message', 'no reason was given')}",
                        "Run it again with -v to see where it happened.",
                    )
                if progress := chunk.get("prompt_progress"):
                    self.cached = int(progress["cache"])
                    yield Reading(int(progress["processed"]), int(progress["total"]))
                    continue
                for choice in chunk["choices"]:
                    yield from self._choice_tokens(choice)
                if cancel.is_set():
                    return

    def _choice_tokens(self, choice: dict[str, Any]) -> Iterator[int | str]:
        for entry in (choice["logprobs"] or {}).get("content", ()):
            ids = chunk_ids(entry, self._tokenizer)
            yield from (choice["text"],) if ids is None else ids
        if choice["finish_reason"] == "stop":  # also after an end token that only llama.cpp knows
            self.text.has_ended = True


def load_backend(plan: LoadPlan, path: Path, progress: ProgressSink, template: str = AUTO) -> LlamaCppBackend:
    """Load the GGUF file. Raises as `open_server` does, and NotFoundError for the tokenizer."""
    # The tokenizer first, so that a bad file or template fails before gigabytes are read.
    progress(LoadProgress("reading the tokenizer"))
    prompter = Prompter(load_tokenizer(path), template, plan.model.form)
    progress(LoadProgress("loading the model into llama.cpp"))
    return LlamaCppBackend(plan, open_server(plan, path), prompter)
