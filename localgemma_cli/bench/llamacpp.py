"""llama.cpp on a GGUF file, through llama-cpp-python, which is only here if the user installed it."""

import time
from importlib import import_module
from statistics import median
from typing import Any

import torch

from localgemma_cli.bench.gauges import peaks, reset_peaks
from localgemma_cli.bench.job import WARM_UP, Answered, Job, Loaded, Outcome, Workload
from localgemma_cli.bench.prompts import prompt_ids
from localgemma_cli.errors import NotFoundError

_HOST = torch.device("cpu")  # what llama.cpp holds on a GPU is not PyTorch's to tell


def measure(job: Job) -> Outcome:
    """The same prompts and lengths; a GGUF file's size stands for the weights that a step reads."""
    assert job.weights is not None  # a GGUF file is what this row is about
    size = job.weights.stat().st_size
    reset_peaks(_HOST)
    started = time.perf_counter()
    model = _load(job)
    seconds = time.perf_counter() - started
    _run(model, job, WARM_UP, -1)
    loaded = Loaded(seconds, peaks(_HOST), size)
    return Outcome(loaded, size, tuple(_answer(model, job, workload) for workload in job.workloads))


def _load(job: Job) -> Any:
    threads = torch.get_num_threads()  # as many as the other rows have, also where fewer cores may be used
    try:
        return import_module("llama_cpp").Llama(
            str(job.weights),
            n_ctx=max(workload.context for workload in (*job.workloads, WARM_UP)) + 1,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=0 if job.plan.device == "cpu" else -1,
            verbose=False,
        )
    except (ValueError, OSError) as error:  # llama.cpp says no more than that it failed
        raise NotFoundError(
            f"llama.cpp cannot load {job.weights}: {error}.", "Check that it is a GGUF file of a Gemma."
        ) from error


def _answer(model: Any, job: Job, workload: Workload) -> Answered:
    reset_peaks(_HOST)
    runs = [_run(model, job, workload, repeat) for repeat in range(job.repeats)]
    return Answered(
        workload=workload,
        first_token_seconds=median(first for _, first, _ in runs),
        decode_tokens_per_second=median(
            (workload.new_tokens - 1) / (total - first) for _, first, total in runs
        ),
        token_ids=runs[0][0],
        peaks=peaks(_HOST),
    )


def _run(model: Any, job: Job, workload: Workload, repeat: int) -> tuple[tuple[int, ...], float, float]:
    """A greedy answer's ids, seconds to its first token and in all."""
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
