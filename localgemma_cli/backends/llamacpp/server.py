"""Opens a GGUF file in llama.cpp as the plan says."""

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from localgemma_cli.errors import NotFoundError
from localgemma_cli.optional_dependencies import require_package
from localgemma_cli.planning.load_plan import LoadPlan
from localgemma_cli.planning.memory import LLAMACPP_BATCH

_SPARE = 8  # tokens; llama.cpp ends an answer shortly before its context is full
_LONGEST_SOCKET = 100  # bytes; the path of a Unix socket is limited to 104 on macOS and 108 on Linux


def open_server(plan: LoadPlan, path: Path) -> Any:
    """An `xllamacpp.Server` with the model in `path`, for one conversation at a time.

    NotFoundError where xllamacpp is missing, or llama.cpp refuses the file.
    """
    with require_package("xllamacpp", "gguf", "GGUF files"):
        import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = plan.context_length + _SPARE
    params.n_gpu_layers = _gpu_layers(plan)
    params.split_mode = xllamacpp.llama_split_mode.LLAMA_SPLIT_MODE_NONE  # the plan is for one GPU
    params.no_op_offload = plan.device == "cpu"
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = count_threads()
    # Progress and cancellation come once per batch.
    params.n_batch = params.n_ubatch = LLAMACPP_BATCH
    params.n_parallel = params.n_outputs_max = 1
    if plan.cache == "q8_0":
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
    # All tokens of sliding layers are kept, so that undo and retry never process a prompt again; no copies of
    # the cache are needed then.
    params.swa_full, params.n_ctx_checkpoints, params.cache_ram_mib = True, 0, 0
    params.warmup = params.fit_params = params.ctx_shift = params.ui = params.endpoint_slots = False
    params.verbosity = -1
    with _closed_listener(params):
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            raise NotFoundError(
                f"llama.cpp cannot load {path}: {error}",
                "The file may be damaged, or need a newer llama.cpp: pip install -U xllamacpp",
            ) from error


def count_threads() -> int:
    """One thread per physical core that this process may use, or OMP_NUM_THREADS."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    logical = psutil.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else logical
    physical = psutil.cpu_count(logical=False) or logical
    return max(1, min(usable, physical))


def _gpu_layers(plan: LoadPlan) -> int:
    """How many layers go to the GPU; -1 for all of them and the output head."""
    if plan.device == "cpu":
        return 0
    return -1 if plan.resident_layers is None else plan.resident_layers


@contextmanager
def _closed_listener(params: Any) -> Iterator[None]:
    """Make the HTTP listener that every Server opens unreachable: requests are passed in this process.

    It is a Unix socket in a private folder, which is removed as soon as the server is open. Windows has a
    random port on this machine with a random key instead.
    """
    if sys.platform == "win32":
        params.hostnames, params.port = ["127.0.0.1"], 0
        params.api_keys = [secrets.token_urlsafe(32)]
        yield
        return
    parent = None if len(os.fsencode(tempfile.gettempdir())) < _LONGEST_SOCKET - 30 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="localgemma-", dir=parent) as folder:  # mode 0700
        params.hostnames = [f"{folder}/s.sock"]
        yield
