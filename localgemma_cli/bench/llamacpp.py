"""Measure llama.cpp on a GGUF file, through xllamacpp, which the extra `gguf` installs."""

import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from localgemma_cli.backends.llamacpp.parameters import basic_parameters
from localgemma_cli.backends.llamacpp.worker import open_server
from localgemma_cli.bench.host_peak import llamacpp_peaks, reset_host_peak
from localgemma_cli.bench.job import WARM_UP, AnswerResult, Job, JobResult, LoadResult, Workload
from localgemma_cli.bench.other_programs import others_share, read_processor_times
from localgemma_cli.bench.prompts import prompt_ids
from localgemma_cli.errors import NotFoundError


def measure(job: Job) -> JobResult:
    """The same prompts and lengths; the size of the GGUF file approximates the weights that a step reads."""
    assert job.weights is not None  # this row always has a GGUF file
    size = job.weights.stat().st_size
    reset_host_peak()
    started = time.perf_counter()
    server = _open(job, job.weights)
    seconds = time.perf_counter() - started
    _run(server, job, WARM_UP, -1)
    loaded = LoadResult(seconds, llamacpp_peaks(), size)
    return JobResult(loaded, size, tuple(_answer(server, job, workload) for workload in job.workloads))


def _open(job: Job, path: Path) -> Any:
    """llama.cpp's server in this process, with its defaults but for the length and what only a chat needs."""
    context = max(workload.context for workload in (*job.workloads, WARM_UP))
    parameters = {
        **basic_parameters(path, context, job.plan.device),
        "n_gpu_layers": 0 if job.plan.device == "cpu" else -1,
        "n_ctx_checkpoints": 0,  # copies of the cache, for later prompts
        "verbosity": -1,
    }
    try:
        return open_server(import_module("xllamacpp"), parameters)
    except RuntimeError as error:
        raise NotFoundError(
            f"llama.cpp cannot load {path}: {error}.", "Check that it is a GGUF file of a Gemma."
        ) from error


def _answer(server: Any, job: Job, workload: Workload) -> AnswerResult:
    reset_host_peak()
    processor = read_processor_times()
    runs = [_run(server, job, workload, repeat) for repeat in range(job.repeats)]
    return AnswerResult(
        workload=workload,
        first_token_seconds=median(run.first_seconds for run in runs),
        decode_tokens_per_second=median(run.decode_rate for run in runs),
        token_ids=(),  # llama.cpp is slower when it returns them, and nothing is compared with its weights
        peaks=llamacpp_peaks(),
        others_share=others_share(processor, read_processor_times()),
    )


@dataclass(frozen=True)
class _Run:
    """`decode_rate`: tokens per second after the first chunk."""

    first_seconds: float
    decode_rate: float


def _run(server: Any, job: Job, workload: Workload, repeat: int) -> _Run:
    """One greedy answer, timed by this process's clock when each chunk of text arrives.

    A chunk is one token, or several where a character has several; `predicted_n` counts them.
    """
    request = {**_request(job, workload, repeat), "stream": True, "timings_per_token": True}
    arrived: list[tuple[float, int]] = []

    def receive(chunk: dict[str, Any]) -> bool:
        arrived.append((time.perf_counter(), chunk["timings"]["predicted_n"]))
        return False

    started = time.perf_counter()
    server.handle_completions(request, receive)
    ended = time.perf_counter()
    first, counted = arrived[0]
    total = arrived[-1][1]
    assert total == workload.new_tokens, f"llama.cpp wrote {total} tokens, not {workload.new_tokens}"
    return _Run(first - started, (total - counted) / (ended - first))


def _request(job: Job, workload: Workload, repeat: int) -> dict[str, object]:
    prompt = prompt_ids(job.plan.model.architecture.vocabulary, workload, job.seed, repeat)
    return {
        "prompt": [list(prompt)],
        "max_tokens": workload.new_tokens,
        "samplers": ["top_k"],  # the fastest greedy choice: temperature 0 computes all probabilities
        "top_k": 1,
        "ignore_eos": True,  # never stop early
        "cache_prompt": False,
    }
