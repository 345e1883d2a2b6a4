"""Device synchronisation, memory peaks and byte counts, for every engine."""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from localgemma_cli.bench.host_peak import host_peak, reset_host_peak
from localgemma_cli.bench.job import Peaks


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished, so that a clock measures its work and not only the launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peaks(device: torch.device) -> None:
    """Start new peaks; outside Linux the host's peak stays that of the whole process."""
    reset_host_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> Peaks:
    allocated = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Peaks(host_peak(), allocated)


def tensor_bytes(model: PreTrainedModel) -> int:
    """Bytes of all tensors, each counted once, with those of the quantization."""
    return _total(model, skipped=None)


def step_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that one decode step reads: every tensor once, of the embedding one row.

    A tied head shares the embedding's tensor and reads all of it.
    """
    embedding = model.get_input_embeddings()
    row = embedding.weight.shape[-1] * embedding.weight.element_size()
    return _total(model, skipped=embedding) + int(row)


def _total(model: PreTrainedModel, skipped: torch.nn.Module | None) -> int:
    sizes = {
        _identity(tensor): tensor.numel() * tensor.element_size()
        for module in model.modules()
        if module is not skipped
        for tensor in _tensors_of(module)
    }
    return sum(sizes.values())


def _identity(tensor: torch.Tensor) -> int:
    """Its address; `id` for a tensor without one: offloaded, or in a library's own layout."""
    strided = tensor.layout is torch.strided and tensor.device.type != "meta"
    return tensor.data_ptr() if strided else id(tensor)


def _tensors_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """A module's own tensors; packed or quantized weights may be plain attributes."""
    own = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
    for value in own:
        yield from _tensors_in(value)


def _tensors_in(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    if type(value).__module__.startswith("bitsandbytes"):  # scales are attributes of weights and states
        for inner in vars(value).values():
            yield from _tensors_in(inner)
