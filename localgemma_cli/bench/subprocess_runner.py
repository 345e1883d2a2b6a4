"""Each measurement in a process of its own, so that no peak and no allocator is another's."""

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

from localgemma_cli.bench.job import Engine, Job, Outcome
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
    """An error on its way to the parent; exceptions with two arguments do not survive pickling."""

    kind: type[LocalGemmaError]
    message: str
    hint: str


def measure(job: Job, environment: Mapping[str, str]) -> Outcome:
    return cast(Outcome, _apart(_MEASURE[job.engine], (job,), environment))


def bandwidth(device: str) -> float:
    """Bytes per second that the device's memory gives."""
    return float(_apart(f"{_HERE}.bandwidth:measure", (device,), {}))


def write_checkpoint(architecture: Architecture, folder: Path, seed: int) -> None:
    _apart(f"{_HERE}.random_weights:write_checkpoint", (architecture, folder, seed), {})


def _apart(function: str, arguments: tuple[object, ...], environment: Mapping[str, str]) -> Any:
    """What `module:function` returns in a fresh interpreter with `environment` on top of this one's."""
    with TemporaryDirectory(prefix="localgemma-bench-") as folder:
        task, result = Path(folder) / "task", Path(folder) / "result"
        task.write_bytes(pickle.dumps((function, arguments)))
        with _alive() as stdin:
            done = subprocess.run(
                [sys.executable, "-m", f"{_HERE}", str(task), str(result)],
                env={**os.environ, **environment},
                stdin=stdin,
                capture_output=True,
                check=False,
            )
        if done.returncode:
            raise _died(done.returncode, done.stderr.decode(errors="replace"))
        value = pickle.loads(result.read_bytes())
    if isinstance(value, Failure):
        raise value.kind(value.message, value.hint)
    return value


@contextmanager
def _alive() -> Iterator[int]:
    """A pipe's reading end that is at its end as soon as this process is gone, however it went."""
    read_end, write_end = os.pipe()
    try:
        yield read_end
    finally:
        os.close(read_end)
        os.close(write_end)


def _died(code: int, stderr: str) -> LocalGemmaError:
    if code == -getattr(signal, "SIGKILL", 9):
        return DoesNotFitError(
            "The measurement was killed, most likely because memory ran out.",
            "Take fewer tokens, a smaller model, or --preset memory.",
        )
    last = (stderr.strip().splitlines() or [f"exit code {code}"])[-1]
    error = LocalGemmaError(f"The measurement failed: {last}", "Run it with -v to see where.")
    error.add_note(stderr)
    return error
