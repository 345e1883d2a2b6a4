"""Measure localgemma's own engine in PyTorch, through the interface that a chat uses."""

import time
from functools import partial

import torch
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.backend import LocalBackend
from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.bench.gauges import peaks, reset_peaks, step_bytes, synchronise, tensor_bytes
from localgemma_cli.bench.job import WARM_UP, AnswerResult, Job, JobResult, LoadResult, Workload
from localgemma_cli.bench.random_weights import load_dummy
from localgemma_cli.bench.timed_backend import Gauges, IdPrompter, TimedBackend, stream_cost
from localgemma_cli.prompts.prompter import Prompter
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer
from localgemma_cli.render.progress import ignore_progress


def measure(job: Job) -> JobResult:
    prompter = IdPrompter(load_tokenizer(job.tokenizer))
    seconds, backend, model = _load(job, prompter)
    device = torch.device(job.plan.device)
    gauges = Gauges(partial(synchronise, device), partial(reset_peaks, device), partial(peaks, device))
    timed = TimedBackend(backend, job, gauges)
    timed.run(WARM_UP, repeat=-1)
    loaded = LoadResult(seconds, peaks(device), tensor_bytes(model))
    return JobResult(
        loaded=loaded,
        read_bytes=step_bytes(model),
        answered=tuple(_answer(timed, backend, workload) for workload in job.workloads),
        chatted=timed.chat(job.chat) if job.workloads and job.chat else None,
        stream_seconds_per_token=stream_cost(prompter.tokenizer),
    )


def _load(job: Job, prompter: Prompter) -> tuple[float, LocalBackend, PreTrainedModel]:
    """The seconds of loading, the backend and the model."""
    device = torch.device(job.plan.device)
    reset_peaks(device)
    synchronise(device)
    started = time.perf_counter()
    if job.weights is None:
        model = load_dummy(job.plan, job.seed)
    else:
        model = load_model(job.plan, job.weights, ignore_progress)
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        if config is not None:
            config.eos_token_id = None  # never stop early
    backend = LocalBackend(job.plan, model, prompter)
    synchronise(device)
    return time.perf_counter() - started, backend, model


def _answer(timed: TimedBackend, backend: LocalBackend, workload: Workload) -> AnswerResult:
    if backend.plan.device != "cpu":
        timed.run(workload, repeat=-1)  # the first run of a shape makes its graphs and kernels
        backend.wait()
        timed.run(workload, repeat=-2)  # records what compiled meanwhile
    return timed.answer(workload)
