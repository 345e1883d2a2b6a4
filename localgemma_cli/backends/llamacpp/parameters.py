"""The parameters of llama.cpp's server, as the plan says."""

import os
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from localgemma_cli.planning.load_plan import LoadPlan
from localgemma_cli.planning.memory import LLAMACPP_BATCH, LLAMACPP_CHECKPOINTS, llamacpp_keeps_all
from localgemma_cli.types import DeviceKind

_SPARE = 8  # tokens; llama.cpp ends an answer shortly before its context is full
_Q8_0 = 8  # ggml_type
_ONE_GPU = 0  # LLAMA_SPLIT_MODE_NONE
_ERRORS = 1  # the least that is logged


def server_parameters(plan: LoadPlan, path: Path) -> dict[str, object]:
    """By the names of `xllamacpp.CommonParams`; for one conversation at a time."""
    keeps_all = llamacpp_keeps_all(plan.model.architecture, plan.context_length)
    return {
        **basic_parameters(path, plan.context_length, plan.device),
        "n_gpu_layers": _gpu_layers(plan),
        "split_mode": _ONE_GPU,  # which the plan is for
        # Progress and cancellation come once per batch.
        "n_batch": LLAMACPP_BATCH,
        "n_ubatch": LLAMACPP_BATCH,
        "n_outputs_max": 1,
        "n_threads_http": 1,  # nothing is sent to its listener
        **({"cache_type_k": _Q8_0, "cache_type_v": _Q8_0} if plan.cache == "q8_0" else {}),
        "swa_full": keeps_all,
        "n_ctx_checkpoints": 0 if keeps_all else LLAMACPP_CHECKPOINTS,
        "verbosity": _ERRORS,
    }


def basic_parameters(path: Path, context: int, device: DeviceKind) -> dict[str, object]:
    """For one conversation of `context` tokens, without what only a server needs."""
    threads = count_threads()
    return {
        "model.path": str(path),
        "n_ctx": context + _SPARE,
        "no_op_offload": device == "cpu",
        "cpuparams.n_threads": threads,
        "cpuparams_batch.n_threads": threads,
        "n_parallel": 1,
        "cache_ram_mib": 0,  # a second copy of the cache, for other conversations
        **dict.fromkeys(("warmup", "fit_params", "ctx_shift", "ui", "endpoint_slots"), False),
    }


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
