"""Measure llama.cpp on a GGUF file, through llama-cpp-python, which is an optional dependency."""

import time
from importlib import import_module
from statistics import median
from typing import Any

import torch

from localgemma_cli.bench.gauges import peaks, reset_peaks
from localgemma_cli.bench.job import WARM_UP, AnswerResult, Job, JobResult, LoadResult, Workload
from localgemma_cli.bench.prompts import prompt_ids
from localgemma_cli.errors import NotFoundError

_HOST = torch.device("cpu")  # PyTorch cannot see llama.cpp's GPU memory


def measure(job: Job) -> JobResult:
    """The same prompts and lengths; the size of the GGUF file approximates the weights that a step reads."""
    assert job.weights is not None  # this row always has a GGUF file
    size = job.weights.stat().st_size
    reset_peaks(_HOST)
    started = time.perf_counter()
    model = _load(job)
    seconds = time.perf_counter() - started
    _run(model, job, WARM_UP, -1)
    loaded = LoadResult(seconds, peaks(_HOST), size)
    return JobResult(loaded, size, tuple(_answer(model, job, workload) for workload in job.workloads))


def _load(job: Job) -> Any:
    threads = torch.get_num_threads()  # as for the other rows, within the cores that this process may use
    try:
        return import_module("llama_cpp").Llama(
            str(job.weights),
            n_ctx=max(workload.context for workload in (*job.workloads, WARM_UP)) + 1,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=0 if job.plan.device == "cpu" else -1,
            verbose=False,
        )
    except (ValueError, OSError) as error:  # llama.cpp gives no reason
        raise NotFoundError(
            f"llama.cpp cannot load {job.weights}: {error}.", "Check that it is a GGUF file of a Gemma."
        ) from error


def _answer(model: Any, job: Job, workload: Workload) -> AnswerResult:
    reset_peaks(_HOST)
    runs = [_run(model, job, workload, repeat) for repeat in range(job.repeats)]
    return AnswerResult(
        workload=workload,
        first_token_seconds=median(first for _, first, _ in runs),
        decode_tokens_per_second=median(
            (workload.new_tokens - 1) / (total - first) for _, first, total in runs
        ),
        token_ids=runs[0][0],
        peaks=peaks(_HOST),
    )


def _run(model: Any, job: Job, workload: Workload, repeat: int) -> tuple[tuple[int, ...], float, float]:
    """A greedy answer's ids, and the seconds to its first token and to its end."""
    prompt = list(prompt_ids(model.n_vocab(), workload, job.seed, repeat))
    ids: list[int] = []
    started = first = time.perf_counter()
    for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
        if not ids:
            first = time.perf_counter()
        ids.append(token)
        if len(ids) == workload.new_tokens:
            break
    return tuple(ids), first - started, time.perf_counter() - started
