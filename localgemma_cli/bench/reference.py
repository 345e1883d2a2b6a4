"""Measure plain `transformers.generate`, the row that the others are compared with."""

import time
from dataclasses import replace
from statistics import median

import torch
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from localgemma_cli.bench.gauges import peaks, reset_peaks, step_bytes, synchronise, tensor_bytes
from localgemma_cli.bench.job import WARM_UP, AnswerResult, Job, JobResult, LoadResult, Workload
from localgemma_cli.bench.other_programs import others_share, read_processor_times
from localgemma_cli.bench.prompts import prompt_ids
from localgemma_cli.bench.random_weights import load_dummy


class _CallTimes(BaseStreamer):
    """Times of `generate`'s calls: the first is the prompt, the second the first token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class _Margins(LogitsProcessor):
    """The likeliest logit minus the next one; near zero, rounding decides which token wins."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        best, next_best = scores[0].float().topk(2).values.tolist()
        self.values.append(best - next_best)
        return scores


def measure(job: Job) -> JobResult:
    """Use the dtype and device of `job.plan`, with eager attention and without quantization."""
    device = torch.device(job.plan.device)
    reset_peaks(device)
    synchronise(device)
    started = time.perf_counter()
    model = _load(job)
    synchronise(device)
    seconds = time.perf_counter() - started
    _generate(model, _prompt(model, job, WARM_UP, -1), WARM_UP.new_tokens)
    loaded = LoadResult(seconds, peaks(device), tensor_bytes(model))
    first, margins = job.workloads[0], _Margins()
    _generate(model, _prompt(model, job, first, 0), first.new_tokens, margins=margins)
    answered = [_answer(model, job, workload) for workload in job.workloads]
    answered[0] = replace(answered[0], margins=tuple(margins.values))
    return JobResult(loaded, step_bytes(model), tuple(answered))


def _load(job: Job) -> PreTrainedModel:
    if job.weights is None:
        model = load_dummy(job.plan, job.seed, attn_implementation="eager")
    else:
        model = AutoModelForCausalLM.from_pretrained(
            job.weights,
            dtype=getattr(torch, job.plan.dtype),
            attn_implementation="eager",
            device_map={"": job.plan.device},
            use_safetensors=True,
            local_files_only=True,
        ).eval()
    model.generation_config.eos_token_id = None  # never stop early
    return model


def _answer(model: PreTrainedModel, job: Job, workload: Workload) -> AnswerResult:
    reset_peaks(model.device)
    first, rates, answers = [], [], []
    processor = read_processor_times()
    for repeat in range(job.repeats):
        prompt, clock = _prompt(model, job, workload, repeat), _CallTimes()
        synchronise(model.device)
        started = time.perf_counter()
        answers.append(_generate(model, prompt, workload.new_tokens, clock=clock))
        synchronise(model.device)
        assert len(answers[-1]) == workload.new_tokens, f"{len(answers[-1])} tokens"
        first.append(clock.times[1] - started)
        rates.append((workload.new_tokens - 1) / (time.perf_counter() - clock.times[1]))
    return AnswerResult(
        workload=workload,
        first_token_seconds=median(first),
        decode_tokens_per_second=median(rates),
        token_ids=answers[0],
        peaks=peaks(model.device),
        others_share=others_share(processor, read_processor_times()),
    )


def _prompt(model: PreTrainedModel, job: Job, workload: Workload, repeat: int) -> torch.Tensor:
    ids = prompt_ids(model.config.vocab_size, workload, job.seed, repeat)
    return torch.tensor([ids], device=model.device)


def _generate(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    new_tokens: int,
    *,
    margins: _Margins | None = None,
    clock: _CallTimes | None = None,
) -> tuple[int, ...]:
    """The greedy answer's ids."""
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([margins] if margins else []),
        streamer=clock,
    )
    return tuple(output[0, prompt.shape[1] :].tolist())
