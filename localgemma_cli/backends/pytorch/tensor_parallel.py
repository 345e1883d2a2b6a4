"""Tensor parallel: one forward in all processes that `torchrun` started, each with its slice of the weights.

Rank 0 decides what is loaded, fed and sampled. It sends the ids of each forward, and where in the cache they
go; the others run the same forward, and all meet in the sums of transformers' plan. The others end when the
connection to rank 0 closes, in whatever way it ended.
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

_PATIENCE = timedelta(days=365)  # between two messages a model is downloaded, or a user thinks
_CPU = torch.device("cpu")  # messages go by gloo, also between GPUs

Result = TypeVar("Result")


def lead(plan: LoadPlan, folder: Path, progress: ProgressSink) -> PreTrainedModel:
    """Rank 0: a model that takes the others along at each forward; raises what loading raised anywhere."""
    if (plan.device == "cuda") != torch.cuda.is_available():
        raise UsageError(
            f"Several processes compute on GPUs where there are any, not on --device {plan.device}.",
            "Hide the GPUs: CUDA_VISIBLE_DEVICES= torchrun …",
        )
    _join()
    distributed.broadcast_object_list([plan, folder], src=0, device=_CPU)
    model = _everywhere(lambda: load_model(plan, folder, progress))
    steps = _Steps()
    model.register_forward_pre_hook(steps.announce, with_kwargs=True)
    model.register_forward_hook(steps.done)
    return model


def follow() -> ExitCode:
    """The other ranks: load what rank 0 loads and run what it runs, until it is gone."""
    _join()
    message: list[Any] = [None, None]
    if not _heard(lambda: distributed.broadcast_object_list(message, src=0, device=_CPU)):
        return ExitCode.OK
    plan, folder = message
    model = _everywhere(lambda: load_model(plan, folder, lambda _: None))
    kv = KVCache(model.config, plan.cache, plan.context_length)
    header = torch.empty(3, dtype=torch.int64)
    with torch.inference_mode():
        while _heard(lambda: distributed.broadcast(header, src=0)):
            start, keep, count = header.tolist()
            ids = torch.empty(1, count, dtype=torch.int64)
            distributed.broadcast(ids, src=0)
            kv.keep(start)
            with kv.appending(ids[0].tolist()) as cache:
                forward(model, ids.to(model.device), cache, keep)
    return ExitCode.OK


class _Steps:
    """Hooks around each forward of rank 0."""

    def __init__(self) -> None:
        self._running = False

    def announce(self, _model: nn.Module, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._running:  # a forward failed in the middle, and the others still wait in it
            raise LocalGemmaError("The processes are out of step after a failure.", "Start them again.")
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
    distributed.init_process_group(backend, timeout=_PATIENCE)


def _everywhere(load: Callable[[], Result]) -> Result:
    """What `load` gives here, once it has given something in every process; else the first error of any."""
    loaded, failure = None, None
    try:
        loaded = load()
    except LocalGemmaError as error:
        failure = (type(error), error.message, error.hint)
    failures: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(failures, failure)
    for kind, message, hint in filter(None, failures):
        raise kind(message, hint)
    assert loaded is not None  # there was no failure here either
    return loaded


def _heard(receive: Callable[[], object]) -> bool:
    """False where rank 0 is gone instead."""
    try:
        receive()
    except RuntimeError:
        return False
    return True
