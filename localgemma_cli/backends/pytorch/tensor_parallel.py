"""Tensor parallelism: every process that `torchrun` started runs each forward with its slice of the weights.

Rank 0 loads, samples and answers. Before each forward it sends the ids and their position in the cache; the
other ranks run the same forward, and transformers sums the partial results of all. The other ranks exit when
the connection to rank 0 closes.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.generation.decode import forward
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.errors import ExitCode, LocalGemmaError, UsageError
from localgemma_cli.events import ProgressSink
from localgemma_cli.planning.plan import LoadPlan

_TIMEOUT = timedelta(days=365)  # between messages a model may be downloaded, or a user may pause
_CPU = torch.device("cpu")  # messages use gloo, even between GPUs

Result = TypeVar("Result")


def load_parallel(plan: LoadPlan, folder: Path, progress: ProgressSink) -> PreTrainedModel:
    """On rank 0: load the model in all processes; its forward makes the others run theirs.

    Raises the first error of any process.
    """
    if (plan.device == "cuda") != torch.cuda.is_available():
        raise UsageError(
            f"--device {plan.device} cannot be used with several processes on a machine with GPUs.",
            "Hide the GPUs: CUDA_VISIBLE_DEVICES= torchrun …",
        )
    _join()
    distributed.broadcast_object_list([plan, folder], src=0, device=_CPU)
    model = _load_everywhere(lambda: load_model(plan, folder, progress))
    hooks = _ForwardHooks()
    model.register_forward_pre_hook(hooks.announce, with_kwargs=True)
    model.register_forward_hook(hooks.done)
    return model


def follow() -> ExitCode:
    """On the other ranks: load what rank 0 loads and run its forwards, until it exits."""
    _join()
    message: list[Any] = [None, None]
    if not _has_received(lambda: distributed.broadcast_object_list(message, src=0, device=_CPU)):
        return ExitCode.OK
    plan, folder = message
    model = _load_everywhere(lambda: load_model(plan, folder, lambda _: None))
    kv = KVCache(model.config, plan.cache, plan.context_length)
    header = torch.empty(3, dtype=torch.int64)
    with torch.inference_mode():
        while _has_received(lambda: distributed.broadcast(header, src=0)):
            start, keep, count = header.tolist()
            ids = torch.empty(1, count, dtype=torch.int64)
            distributed.broadcast(ids, src=0)
            kv.truncate(start)
            with kv.appending(ids[0].tolist()) as cache:
                forward(model, ids.to(model.device), cache, keep)
    return ExitCode.OK


class _ForwardHooks:
    """Hooks that run before and after each forward of rank 0."""

    def __init__(self) -> None:
        self._running = False

    def announce(self, _model: nn.Module, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._running:  # a forward failed halfway, and the others still wait in it
            raise LocalGemmaError(
                "The processes are out of step after a failure.", "Restart them with torchrun."
            )
        self._running = True
        ids = kwargs["input_ids"].to(_CPU)
        start = int(kwargs["past_key_values"].get_seq_length())
        header = torch.tensor([start, kwargs["logits_to_keep"], ids.shape[1]], dtype=torch.int64)
        distributed.broadcast(header, src=0)
        distributed.broadcast(ids, src=0)

    def done(self, *_: object) -> None:
        self._running = False


def _join() -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=_TIMEOUT)


def _load_everywhere(load: Callable[[], Result]) -> Result:
    """The result of `load` here, once it has succeeded in every process; else raise the first error."""
    loaded, failure = None, None
    try:
        loaded = load()
    except LocalGemmaError as error:
        failure = (type(error), error.message, error.hint)
    failures: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(failures, failure)
    for kind, message, hint in filter(None, failures):
        raise kind(message, hint)
    assert loaded is not None  # there was no failure in this process
    return loaded


def _has_received(receive: Callable[[], object]) -> bool:
    """Run `receive`; False where rank 0 has exited."""
    try:
        receive()
    except RuntimeError:
        return False
    return True
