"""The backend that runs a Gemma in this process with PyTorch. Implements `backends.base.Backend`."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event as Cancel

import torch
from transformers import PreTrainedModel

from localgemma_cli.backends.answer_stream import (
    AnswerText,
    answer_events,
    answer_limit,
    check_room,
    stopped_before_reading,
)
from localgemma_cli.backends.choices import choose
from localgemma_cli.backends.many import Request, Requests, interleave
from localgemma_cli.backends.pytorch.generation.constraints import TokenGrammars
from localgemma_cli.backends.pytorch.generation.cpu_step import CpuStep
from localgemma_cli.backends.pytorch.generation.cuda_graph import RecordedStep, Step
from localgemma_cli.backends.pytorch.generation.decode import generate, make_step
from localgemma_cli.backends.pytorch.generation.draft_model import DraftModel, load_draft_model
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache, choose_cache
from localgemma_cli.backends.pytorch.generation.prompt_lookup import Guesses, PromptLookup
from localgemma_cli.backends.pytorch.generation.row_step import RowStep, compute_steps
from localgemma_cli.backends.pytorch.generation.sampler import Sampler
from localgemma_cli.backends.pytorch.generation.scoring import score_tokens
from localgemma_cli.backends.pytorch.loading.loader import load_model, out_of_memory
from localgemma_cli.backends.scored_token import describe_token
from localgemma_cli.constraint import Choices
from localgemma_cli.conversation import Message
from localgemma_cli.errors import LocalGemmaError, UsageError
from localgemma_cli.events import Event, LoadProgress, ProgressSink, RateMeter, Reading, TokenLogprob
from localgemma_cli.models.fetch import tokenizer_folder
from localgemma_cli.models.load_errors import load_error, loading
from localgemma_cli.models.own_models import AUTO
from localgemma_cli.planning.plan import LoadPlan
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer
from localgemma_cli.sampling import Sampling
from localgemma_cli.text_score import TextScore, text_windows

# Parameters. The demo's step takes 2.9 ms on one core and 2.6 ms on four, but 400 ms where other programs use
# those cores, because each product then waits for a thread that is not running.
_SMALL = 20_000_000


class LocalBackend:
    """A loaded model and the KV caches of as many conversations as the plan has rows."""

    name = "local"
    continues = True

    def __init__(
        self, plan: LoadPlan, model: PreTrainedModel, prompter: Prompter, draft: DraftModel | None = None
    ) -> None:
        self.plan = plan
        self._draft = draft
        self.context_length = plan.context_length
        self.note = prompter.note
        self._model, self._prompter = model, prompter
        self._step = make_step(model, plan.compile)
        kept = plan.rows if self._keeps_several else 1
        self._caches = [KVCache(model.config, plan.cache, plan.context_length) for _ in range(kept)]
        self._stop_ids = prompter.stop_ids | _generation_eos(model)
        self._grammars = TokenGrammars(prompter.tokenizer, self._stop_ids)
        self._has_generated = plan.model.bundled  # if so, an error is a bug and not a bad checkpoint

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """See `Backend.stream`. Also raises DoesNotFitError, where memory runs out during the answer."""
        yield from self._answer(messages, sampling, cancel, None, self._step)

    @property
    def _keeps_several(self) -> bool:
        """Whether caches can be copied; a recorded step belongs to one cache."""
        return self.plan.cache in ("full", "int8") and self.plan.compile == "none"

    @property
    def rows(self) -> int:
        """See `ManyBackend`. Only the fast CPU step reads the weights once for several rows."""
        if isinstance(self._step, CpuStep) and self._keeps_several:
            return min(self.plan.rows, self._step.rows)
        return 1

    def stream_many(self, requests: Requests, cancel: Cancel) -> Iterator[tuple[int, Event]]:
        """See `ManyBackend.stream_many`."""
        step, caches = self._step, tuple(self._caches[: self.rows])
        assert isinstance(step, CpuStep)  # else one row is as fast
        steps = [RowStep() for _ in caches]

        def begin(place: int, request: Request) -> Iterator[Event]:
            return self._answer(*request, cancel, caches[place], steps[place])

        yield from interleave(requests, cancel, self.rows, begin, lambda: compute_steps(step, steps))

    def _answer(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        cancel: Cancel,
        kv: KVCache | None,
        step: Step | RowStep,
    ) -> Iterator[Event]:
        """`kv`: one of the caches; None for the one that fits the prompt best."""
        if isinstance(sampling.constraint, Choices):
            choices = sampling.constraint.choices
            scores = partial(self._score_answers, messages, choices, kv)
            yield from choose(scores, self._prompter, messages, choices, sampling, cancel)
            return
        meter = RateMeter()
        prompt = self._prompter.encode(messages)
        if cancel.is_set():
            raise stopped_before_reading()
        limit = answer_limit(self.context_length, len(prompt), sampling.max_new_tokens)
        kv = choose_cache(self._caches, prompt) if kv is None else kv
        cached = kv.reuse(prompt, self._caches)
        text = AnswerText(self._prompter, self._stop_ids, sampling)
        grammar = self._grammars.begin(sampling.constraint) if sampling.constraint else None
        sampler = Sampler(sampling, self._model.device, grammar)
        tokens = self._tokens(prompt, sampler, limit, cancel, kv, step, text)
        logprobs = None if sampling.logprobs is None else partial(self._logprobs, sampler)
        yield from answer_events(tokens, text, meter, len(prompt), lambda: cached, cancel, logprobs)

    def count(self, messages: Sequence[Message]) -> int:
        return len(self._prompter.encode(messages))

    def recognizes(self, answer: Message) -> bool:
        return self._prompter.recognizes(answer)

    def prompt(self, messages: Sequence[Message]) -> str:
        return self._prompter.text(messages)

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """See `Backend.score`."""
        return self._score_answers(messages, answers, None)

    def _score_answers(
        self, messages: Sequence[Message], answers: Sequence[str], kv: KVCache | None
    ) -> list[float]:
        prompt = self._prompter.encode(messages)
        kv = choose_cache(self._caches, prompt) if kv is None else kv
        encoded = [self._prompter.encode_answer(answer) for answer in answers]
        check_room(self.context_length, len(prompt) + max(map(len, encoded), default=0))
        with self._as_user_errors():
            return [
                sum(self._score([*prompt, *answer], len(prompt), kv, self._stop_ids)) for answer in encoded
            ]

    def score_text(self, text: str, stride: int, progress: Callable[[int, int], None]) -> TextScore:
        """See `TextBackend.score_text`."""
        begin, ids = self._prompter.begin_ids, self._prompter.encode_answer(text)
        tokens, total = 0, 0.0
        with self._as_user_errors():
            for window in text_windows(len(ids), self.context_length - len(begin), stride):
                progress(window.first, len(ids))
                read = [*begin, *ids[window.start : window.end]]
                first = len(begin) + window.first - window.start
                # nothing predicts the first without <bos>
                scores = self._score(read, max(first, 1), self._caches[0])
                tokens, total = tokens + len(scores), total + sum(scores)
        if not tokens:
            raise UsageError("The text has one token, and nothing predicts it.", "Give a longer text.")
        return TextScore(tokens, len(text.encode()), total)

    def _score(
        self, ids: Sequence[int], first: int, kv: KVCache, ends: frozenset[int] = frozenset()
    ) -> list[float]:
        return score_tokens(self._model, kv, ids, first, ends)

    def _tokens(
        self,
        prompt: list[int],
        sampler: Sampler,
        limit: int,
        cancel: Cancel,
        kv: KVCache,
        step: Step | RowStep,
        text: AnswerText,
    ) -> Generator[Reading | int | str]:
        guesses = None if isinstance(step, RowStep) else self._guesses(cancel)
        with (
            self._as_user_errors(),
            closing(
                generate(self._model, step, kv, prompt, sampler, self._stop_ids, limit, cancel, guesses)
            ) as tokens,
        ):
            for token in tokens:
                self._has_generated = self._has_generated or not isinstance(token, Reading)
                yield token
            text.has_ended = text.has_ended or sampler.is_complete

    def _logprobs(self, sampler: Sampler, count: int) -> list[TokenLogprob]:
        return [describe_token(each, self._prompter.tokenizer) for each in sampler.scored(count)]

    @contextmanager
    def _as_user_errors(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.plan) from error
        except LocalGemmaError:
            raise
        except Exception as error:  # a config that does not match its weights can raise any of them
            if self._has_generated:
                raise
            raise load_error("model", Path(self.plan.model.id), error) from error

    def wait(self) -> None:
        """Wait for compilation in the background to end, before a measurement."""
        if isinstance(self._step, RecordedStep):
            self._step.wait()

    def _guesses(self, cancel: Cancel) -> Guesses | None:
        if self._draft is not None:
            return self._draft.begin_answer(cancel)
        return PromptLookup() if self.plan.assistant == "lookup" else None


def _generation_eos(model: PreTrainedModel) -> frozenset[int]:
    """The end tokens in the model's configs; some lack the end of a turn, which the prompter adds."""
    configs = (model.generation_config, model.config, model.config.get_text_config())
    listed = [getattr(config, "eos_token_id", None) for config in configs]
    flat = [each for eos in listed for each in (eos if isinstance(eos, (list, tuple)) else [eos])]
    return frozenset(each for each in flat if isinstance(each, int))


@dataclass(frozen=True)
class LoadOptions:
    """What to load a model with: a chat template, and the folders of an adapter and of a draft model."""

    template: str = AUTO
    adapter: Path | None = None
    draft: Path | None = None


def load_backend(
    plan: LoadPlan, folder: Path, progress: ProgressSink, options: LoadOptions = LoadOptions()
) -> LocalBackend:
    """Load the model in `folder`. Raises as `load_model` does, and NotFoundError for the tokenizer."""
    if plan.device == "cpu" and plan.model.architecture.parameters < _SMALL:
        torch.set_num_threads(1)  # before any computation: threads that start later inherit it
    with loading("model", folder):
        # The tokenizer first, so that a bad folder or template fails before gigabytes are read.
        progress(LoadProgress("reading the tokenizer"))
        tokenizer = load_tokenizer(tokenizer_folder(folder, options.adapter))
        prompter = Prompter(tokenizer, options.template, plan.model.form)
        draft = None
        if plan.draft is not None and options.draft is not None:
            draft = load_draft_model(plan, plan.draft, options.draft, tokenizer, progress)
        if plan.processes > 1:
            from localgemma_cli.backends.pytorch.tensor_parallel import load_parallel

            return LocalBackend(plan, load_parallel(plan, folder, progress), prompter)
        return LocalBackend(plan, load_model(plan, folder, progress, options.adapter), prompter, draft)
