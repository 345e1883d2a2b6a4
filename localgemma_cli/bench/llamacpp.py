"""Measure llama.cpp on a GGUF file, through xllamacpp, which the extra `gguf` installs."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil  # type: ignore[import-untyped]

from localgemma_cli.bench.host_peak import host_peak, reset_host_peak
from localgemma_cli.bench.job import WARM_UP, AnswerResult, Job, JobResult, LoadResult, Peaks, Workload
from localgemma_cli.bench.other_programs import others_share, read_processor_times
from localgemma_cli.bench.prompts import prompt_ids
from localgemma_cli.errors import NotFoundError

_SPARE = 8  # tokens; llama.cpp ends an answer shortly before its context is full


def measure(job: Job) -> JobResult:
    """The same prompts and lengths; the size of the GGUF file approximates the weights that a step reads."""
    assert job.weights is not None  # this row always has a GGUF file
    size = job.weights.stat().st_size
    reset_host_peak()
    started = time.perf_counter()
    server = _open(job, job.weights)
    seconds = time.perf_counter() - started
    _run(server, job, WARM_UP, -1)
    loaded = LoadResult(seconds, _peaks(), size)
    return JobResult(loaded, size, tuple(_answer(server, job, workload) for workload in job.workloads))


def _peaks() -> Peaks:
    return Peaks(host_peak(), None)  # nothing here can ask for llama.cpp's memory on a GPU


def _open(job: Job, path: Path) -> Any:
    """llama.cpp's server in this process, with its defaults but for the length and what only a chat needs."""
    xllamacpp = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = max(workload.context for workload in (*job.workloads, WARM_UP)) + _SPARE
    params.n_gpu_layers = 0 if job.plan.device == "cpu" else -1
    params.no_op_offload = job.plan.device == "cpu"
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _thread_count()
    params.n_parallel = 1
    params.n_ctx_checkpoints = params.cache_ram_mib = 0  # copies of the cache, for later prompts
    params.warmup = params.fit_params = params.ctx_shift = params.ui = params.endpoint_slots = False
    params.verbosity = -1
    with _private_listener(params):
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            raise NotFoundError(
                f"llama.cpp cannot load {path}: {error}.", "Check that it is a GGUF file of a Gemma."
            ) from error


def _thread_count() -> int:
    """As PyTorch has in the other rows: OMP_NUM_THREADS, else the physical cores it may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    physical: int = psutil.cpu_count(logical=False) or 1
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else physical
    return min(usable, physical)


@contextmanager
def _private_listener(params: Any) -> Iterator[None]:
    """Make the HTTP listener that every Server opens a Unix socket in a folder that is then removed."""
    if sys.platform == "win32":
        params.hostnames, params.port = ["127.0.0.1"], 0
        yield
        return
    with TemporaryDirectory(prefix="localgemma-") as folder:
        params.hostnames = [f"{folder}/s.sock"]
        yield


def _answer(server: Any, job: Job, workload: Workload) -> AnswerResult:
    reset_host_peak()
    processor = read_processor_times()
    runs = [_run(server, job, workload, repeat) for repeat in range(job.repeats)]
    return AnswerResult(
        workload=workload,
        first_token_seconds=median(run.first_seconds for run in runs),
        decode_tokens_per_second=median(run.decode_rate for run in runs),
        token_ids=(),  # llama.cpp is slower when it returns them, and nothing is compared with its weights
        peaks=_peaks(),
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
