"""A Gemma in this process, behind the seam of `backends.base`."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Cancel

import torch
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.generation.cuda_graph import RecordedStep
from localgemma_cli.backends.pytorch.generation.decode import generate, make_sampler, make_step
from localgemma_cli.backends.pytorch.generation.draft_model import Draft, load_draft
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.generation.prompt_lookup import Guesses, Lookup
from localgemma_cli.backends.pytorch.loading.loader import load_model, out_of_memory
from localgemma_cli.conversation import FinishReason, Message
from localgemma_cli.errors import ContextOverflowError, InterruptedAnswer, LocalGemmaError
from localgemma_cli.events import (
    Delta,
    Event,
    Finished,
    LoadProgress,
    ProgressSink,
    RateMeter,
    Reading,
    Usage,
)
from localgemma_cli.models.load_errors import loading, unloadable
from localgemma_cli.models.own_models import AUTO
from localgemma_cli.models.resolve import tokenizer_folder
from localgemma_cli.planning.plan import LoadPlan
from localgemma_cli.prompts.detokenizer import Detokenizer
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.stop_strings import StopText
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer
from localgemma_cli.sampling import Sampling

# Parameters; the demo's step takes 2.9 ms on one core and 2.6 on four, but 400 where others use those cores,
# because each product then waits for a thread that is not running.
_SMALL = 20_000_000
_ANSWER_ROOM = 256  # tokens of the context that a prompt must leave free, or a quarter of a small context


class LocalBackend:
    """One loaded model, and the KV cache of the conversation it is having."""

    name = "local"
    continues = True

    def __init__(
        self, plan: LoadPlan, model: PreTrainedModel, prompter: Prompter, draft: Draft | None = None
    ) -> None:
        self.plan = plan
        self._draft = draft
        self.context_length = plan.context_length
        self.note = prompter.note
        self._model, self._prompter = model, prompter
        self._kv = KVCache(model.config, plan.cache, plan.context_length)
        self._step = make_step(model, plan.compile)
        self._stop_ids = prompter.stop_ids | _generation_eos(model)
        self._is_proved = plan.model.bundled  # whether it has made a token: then errors are the program's own

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """See `Backend.stream`; raises DoesNotFitError as well, where memory runs out in mid-answer."""
        meter = RateMeter()
        prompt = self._prompter.encode(messages)
        if cancel.is_set():
            raise InterruptedAnswer("Stopped before the prompt was read.", "Send it again when you like.")
        limit = self._room(len(prompt), sampling.max_new_tokens)
        cached = self._kv.reuse(prompt)
        ids: list[int] = []
        whole = 0  # tokens up to the last whole character
        finish: FinishReason = "length"
        detokenizer = Detokenizer(self._prompter.tokenizer)
        stop_text = StopText(self._prompter.stops)
        for token in self._tokens(prompt, sampling, limit, cancel):
            if isinstance(token, Reading):
                yield token
                continue
            meter.tick()
            if token in self._stop_ids:
                finish = "stop"
                break
            ids.append(token)
            if text := stop_text.add(detokenizer.step(token)):
                yield Delta(text)
            whole = whole if detokenizer.is_open else len(ids)
            if stop_text.found:
                finish = "stop"
                break
        if finish != "stop" and cancel.is_set():
            finish = "interrupted"
        end = detokenizer.flush() if finish == "stop" else detokenizer.settled()  # else it may go on
        if rest := "" if stop_text.found else stop_text.rest(end):
            yield Delta(rest)
        kept = stop_text.tokens if finish == "stop" else whole
        usage = Usage(len(prompt), cached, meter.ticks)
        yield Finished(finish, usage, meter.timing(meter.ticks), tuple(ids[:kept]))

    def count(self, messages: Sequence[Message]) -> int:
        return len(self._prompter.encode(messages))

    def recognizes(self, answer: Message) -> bool:
        return self._prompter.recognizes(answer)

    def prompt(self, messages: Sequence[Message]) -> str:
        return self._prompter.text(messages)

    def _tokens(
        self, prompt: list[int], sampling: Sampling, limit: int, cancel: Cancel
    ) -> Iterator[Reading | int]:
        sampler = make_sampler(sampling, self._model.device)
        guesses = self._guesses(cancel)
        try:
            with closing(
                generate(
                    self._model, self._step, self._kv, prompt, sampler, self._stop_ids, limit, cancel, guesses
                )
            ) as tokens:
                for token in tokens:
                    self._is_proved = self._is_proved or not isinstance(token, Reading)
                    yield token
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.plan) from error
        except LocalGemmaError:
            raise
        except Exception as error:  # what a config and weights do not bear out shows as any of them
            if self._is_proved:
                raise
            raise unloadable("model", Path(self.plan.model.id), error) from error

    def wait(self) -> None:
        """Until nothing is being compiled in the background, as a measurement must."""
        if isinstance(self._step, RecordedStep):
            self._step.wait()

    def _guesses(self, cancel: Cancel) -> Guesses | None:
        if self._draft is not None:
            return self._draft.for_answer(cancel)
        return Lookup() if self.plan.assistant == "lookup" else None

    def _room(self, prompt_tokens: int, wanted: int | None) -> int:
        """How many tokens the answer may have; ContextOverflowError where that is too few to be one."""
        room = self.context_length - prompt_tokens
        if room < min(wanted or _ANSWER_ROOM, _ANSWER_ROOM, self.context_length // 4):
            raise ContextOverflowError(
                f"The conversation has {prompt_tokens} tokens, and the context of {self.context_length}"
                " must hold the answer as well.",
                "Shorten the prompt.",
            )
        return min(wanted, room) if wanted else room


def _generation_eos(model: PreTrainedModel) -> frozenset[int]:
    """What the repository itself lists as ends; some list only `<eos>`, so the prompter adds the turn end."""
    configs = (model.generation_config, model.config, model.config.get_text_config())
    listed = [getattr(config, "eos_token_id", None) for config in configs]
    flat = [each for eos in listed for each in (eos if isinstance(eos, (list, tuple)) else [eos])]
    return frozenset(each for each in flat if isinstance(each, int))


@dataclass(frozen=True)
class Parts:
    """What a model may be loaded with besides its own folder."""

    template: str = AUTO
    adapter: Path | None = None
    draft: Path | None = None


def load(plan: LoadPlan, folder: Path, progress: ProgressSink, parts: Parts = Parts()) -> LocalBackend:
    if plan.device == "cpu" and plan.model.architecture.parameters < _SMALL:
        torch.set_num_threads(1)  # before anything runs: other threads take it as their default
    with loading("model", folder):
        return _load(plan, folder, progress, parts)


def _load(plan: LoadPlan, folder: Path, progress: ProgressSink, parts: Parts) -> LocalBackend:
    # first: a folder or template that cannot be used is refused before the weights
    progress(LoadProgress("reading the tokenizer"))
    tokenizer = load_tokenizer(tokenizer_folder(folder, parts.adapter))
    prompter = Prompter(tokenizer, parts.template, plan.model.form)
    draft = None
    if plan.draft is not None and parts.draft is not None:
        draft = load_draft(plan, plan.draft, parts.draft, tokenizer, progress)
    if plan.processes > 1:
        from localgemma_cli.backends.pytorch.tensor_parallel import lead

        return LocalBackend(plan, lead(plan, folder, progress), prompter)
    return LocalBackend(plan, load_model(plan, folder, progress, parts.adapter), prompter, draft)
