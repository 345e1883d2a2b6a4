"""Measure one job with the engine that it names, in the process made for it."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module

from localgemma_cli.bench.job import Engine, Job, JobResult
from localgemma_cli.bench.other_programs import others_share, read_processor_times

_MODULES: Mapping[Engine, str] = {
    "localgemma": "localgemma_cli.bench.engine",
    "transformers": "localgemma_cli.bench.reference",
    "llama.cpp": "localgemma_cli.bench.llamacpp",
}


def measure_job(job: Job) -> JobResult:
    module = import_module(_MODULES[job.engine])  # before the clock starts
    started = read_processor_times()
    result: JobResult = module.measure(job)
    return replace(result, others_share=others_share(started, read_processor_times()))
