"""Plan for several processes, as `torchrun` starts them: each holds a slice of every layer."""

from dataclasses import replace

from localgemma_cli.errors import UsageError
from localgemma_cli.models.architecture import Architecture
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.settings import Overrides, PlanSettings
from localgemma_cli.types import CacheKind


def slice_hardware(hardware: Hardware, processes: int) -> Hardware:
    """What one of the processes has: its part of a CPU's memory, or a GPU, of which the smallest counts.

    Raises UsageError if there are fewer GPUs than processes.
    """
    if hardware.device == "cpu":
        host = hardware.host_memory_free // processes
        device = min(hardware.device_memory_free // processes, host)
        # slices are multiplied by PyTorch's own linear layers
        return replace(hardware, device_memory_free=device, host_memory_free=host, bf16_widened=False)
    count = len(hardware.gpus) if hardware.device == "cuda" else 0
    if count < processes:
        raise UsageError(
            f"{processes} processes need an NVIDIA GPU each, and {count} can be used.",
            "Start fewer processes, or run localgemma without torchrun.",
        )
    least = min(hardware.gpus[:processes], key=lambda gpu: gpu.free)
    return replace(hardware, name=least.name, device_memory_free=least.free, gpu_count=1, other_gpus=())


def slice_settings(facts: ModelFacts, settings: PlanSettings, overrides: Overrides) -> PlanSettings:
    """The settings as they can run in several processes; a UsageError if they cannot."""
    _check_slices(facts, settings, overrides)
    cache: CacheKind = "full" if settings.cache == "static" else settings.cache
    why = f"runs in {overrides.processes} processes, each with a slice of every layer; not compiled"
    return replace(settings, compile="none", cache=cache, offload="none", reasons=(*settings.reasons, why))


def slice_architecture(architecture: Architecture, processes: int) -> Architecture:
    """The narrower model that one process holds: transformers divides heads, MLP and vocabulary."""
    return replace(
        architecture,
        heads=architecture.heads // processes,
        kv_heads=architecture.kv_heads // processes,
        ffn=-(-architecture.ffn // processes),
        vocabulary=-(-architecture.vocabulary // processes),
    )


def _check_slices(facts: ModelFacts, settings: PlanSettings, overrides: Overrides) -> None:
    processes, heads = overrides.processes, facts.architecture.kv_heads
    alone = "or run localgemma without torchrun"
    if heads % processes:
        raise UsageError(
            f"{facts.name} has {heads} key-value heads, which {processes} processes cannot share evenly.",
            f"Start a number of processes that divides {heads}, {alone}.",
        )
    if settings.weights.kind != "none":
        raise UsageError(
            f"{settings.weights.kind} weights cannot be split between processes.",
            f"Use --preset exact or speed, {alone}.",
        )
    if overrides.compile:
        raise UsageError(
            "--compile cannot be used with several processes: their decode step is not compiled.",
            f"Remove --compile, {alone}.",
        )
