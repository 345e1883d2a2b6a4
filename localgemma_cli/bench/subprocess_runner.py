"""Run each measurement in its own process, so that memory peaks and allocators do not mix."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from localgemma_cli.bench.job import Engine, Job, JobResult
from localgemma_cli.errors import DoesNotFitError, LocalGemmaError
from localgemma_cli.models.architecture import Architecture

_HERE = "localgemma_cli.bench"
_MEASURE: Mapping[Engine, str] = {
    "localgemma": f"{_HERE}.engine:measure",
    "transformers": f"{_HERE}.reference:measure",
    "llama.cpp": f"{_HERE}.llamacpp:measure",
}


@dataclass(frozen=True)
class Failure:
    """An error to send to the parent; pickle cannot restore exceptions with two arguments."""

    kind: type[LocalGemmaError]
    message: str
    hint: str


def run_job(job: Job, environment: Mapping[str, str]) -> JobResult:
    function = _MEASURE[job.engine]
    if job.engine == "localgemma" and job.plan.quantization == "gguf":
        function = f"{_HERE}.gguf_engine:measure"
    return cast(JobResult, _run(function, (job,), environment))


def run_bandwidth(device: str) -> float:
    """Bytes per second of the device's memory."""
    return float(_run(f"{_HERE}.bandwidth:measure", (device,), {}))


def run_write_checkpoint(architecture: Architecture, folder: Path, seed: int) -> None:
    _run(f"{_HERE}.random_weights:write_checkpoint", (architecture, folder, seed), {})


def _run(function: str, arguments: tuple[object, ...], environment: Mapping[str, str]) -> Any:
    """The result of `module:function` in a new interpreter with `environment` added to this one's."""
    with TemporaryDirectory(prefix="localgemma-bench-") as folder:
        task, result = Path(folder) / "task", Path(folder) / "result"
        task.write_bytes(pickle.dumps((function, arguments)))
        with _closed_at_our_end() as stdin:
            done = subprocess.run(
                [sys.executable, "-m", f"{_HERE}", str(task), str(result)],
                env={**os.environ, **environment},
                stdin=stdin,
                capture_output=True,
                check=False,
            )
        if done.returncode:
            raise _crash(done.returncode, done.stderr.decode(errors="replace"))
        value = pickle.loads(result.read_bytes())
    if isinstance(value, Failure):
        raise value.kind(value.message, value.hint)
    return value


@contextmanager
def _closed_at_our_end() -> Iterator[int]:
    """The reading end of a pipe that closes when this process ends, however it ends."""
    read_end, write_end = os.pipe()
    try:
        yield read_end
    finally:
        os.close(read_end)
        os.close(write_end)


def _crash(code: int, stderr: str) -> LocalGemmaError:
    if code == -getattr(signal, "SIGKILL", 9):
        return DoesNotFitError(
            "The measuring process was killed, probably because memory ran out.",
            "Use fewer tokens, a smaller model, or --preset memory.",
        )
    last = (stderr.strip().splitlines() or [f"exit code {code}"])[-1]
    error = LocalGemmaError(f"The measurement failed: {last}", "Run again with -v for details.")
    error.add_note(stderr)
    return error
