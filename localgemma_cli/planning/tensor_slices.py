"""A model in several processes, as `torchrun` starts them: a slice of every layer in each."""

from dataclasses import replace

from localgemma_cli.errors import UsageError
from localgemma_cli.models.architecture import Architecture
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.settings import Overrides, Settled
from localgemma_cli.types import CacheKind


def part_of(hardware: Hardware, processes: int) -> Hardware:
    """What one of so many processes has: a GPU of its own (the least counts), or its part of the host."""
    if processes == 1:
        return hardware
    if hardware.device == "cpu":
        host = hardware.host_memory_free // processes
        device = min(hardware.device_memory_free // processes, host)
        # slices are multiplied by PyTorch's own linear layers
        return replace(hardware, device_memory_free=device, host_memory_free=host, bf16_widened=False)
    there = len(hardware.rooms) if hardware.device == "cuda" else 0
    if there < processes:
        raise UsageError(
            f"{processes} processes need an NVIDIA GPU each, and {there} can be used.",
            "Start fewer, or none: localgemma without torchrun takes the GPUs it needs.",
        )
    least = min(hardware.rooms[:processes], key=lambda room: room.free)
    return replace(hardware, name=least.name, device_memory_free=least.free, devices=1, others=())


def sliced(facts: ModelFacts, settled: Settled, overrides: Overrides) -> Settled:
    """What was settled, as it can run in several processes; a UsageError where it cannot."""
    if overrides.processes == 1:
        return settled
    _refuse(facts, settled, overrides)
    cache: CacheKind = "full" if settled.cache == "static" else settled.cache
    why = f"in {overrides.processes} processes, each with a slice of every layer; not compiled"
    return replace(settled, compile="none", cache=cache, offload="none", reasons=(*settled.reasons, why))


def slice_of(architecture: Architecture, processes: int) -> Architecture:
    """What one process holds is a narrower model: transformers' plan cuts heads, MLP and vocabulary."""
    return replace(
        architecture,
        heads=architecture.heads // processes,
        kv_heads=architecture.kv_heads // processes,
        ffn=-(-architecture.ffn // processes),
        vocabulary=-(-architecture.vocabulary // processes),
    )


def _refuse(facts: ModelFacts, settled: Settled, overrides: Overrides) -> None:
    processes, heads = overrides.processes, facts.architecture.kv_heads
    alone = "or start localgemma without torchrun"
    if heads % processes:
        raise UsageError(
            f"{facts.name} has {heads} key-value heads, which {processes} processes cannot share.",
            f"Start a number of processes that divides {heads}, {alone}.",
        )
    if settled.weights.kind != "none":
        raise UsageError(
            f"{settled.weights.kind} weights cannot be split between processes.",
            f"Take --preset exact or speed, {alone}.",
        )
    if overrides.compile:
        raise UsageError("A step of several processes is not compiled.", f"Leave --compile out, {alone}.")
