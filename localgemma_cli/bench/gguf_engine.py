"""Measure a GGUF file in localgemma, through the interface that a chat uses. Needs no PyTorch."""

import time

from localgemma_cli.backends.llamacpp.backend import LlamaCppBackend
from localgemma_cli.backends.llamacpp.parameters import server_parameters
from localgemma_cli.backends.llamacpp.process import LlamaProcess
from localgemma_cli.bench.host_peak import llamacpp_peaks, reset_host_peak
from localgemma_cli.bench.job import WARM_UP, Job, JobResult, LoadResult
from localgemma_cli.bench.timed_backend import Gauges, IdPrompter, TimedBackend, stream_cost
from localgemma_cli.prompts.tokenizer_loader import load_tokenizer
from localgemma_cli.render.progress import ignore_progress


def measure(job: Job) -> JobResult:
    """The size of the file approximates the weights that a step reads."""
    assert job.weights is not None  # a GGUF file always exists
    size = job.weights.stat().st_size
    reset_host_peak()
    started = time.perf_counter()
    parameters = {**server_parameters(job.plan, job.weights), "sampling.ignore_eos": True}  # never stop early
    process = LlamaProcess(parameters)
    prompter = IdPrompter(load_tokenizer(job.weights))
    process.load(ignore_progress)
    seconds = time.perf_counter() - started
    backend = LlamaCppBackend(job.plan, process, prompter, parameters)
    timed = TimedBackend(backend, job, Gauges(lambda: None, reset_host_peak, llamacpp_peaks))
    timed.run(WARM_UP, repeat=-1)
    loaded = LoadResult(seconds, llamacpp_peaks(), size)
    return JobResult(
        loaded=loaded,
        read_bytes=size,
        answered=tuple(timed.answer(workload) for workload in job.workloads),
        chatted=timed.chat(job.chat) if job.workloads and job.chat else None,
        stream_seconds_per_token=stream_cost(prompter.tokenizer),
    )
