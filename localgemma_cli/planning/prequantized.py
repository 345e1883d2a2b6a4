"""What becomes of a checkpoint that is quantized already: kept as it is, or unpacked; and why."""

from localgemma_cli.errors import UsageError
from localgemma_cli.models.architecture import StoredFormat
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.memory import WeightFormat
from localgemma_cli.planning.presets import LOSSLESS, Preset
from localgemma_cli.types import Dtype, Quantization

Decision = tuple[WeightFormat, str]


def as_stored(
    facts: ModelFacts,
    stored: StoredFormat,
    preset: Preset,
    hardware: Hardware,
    dtype: Dtype,
    asked: Quantization | None,
) -> Decision:
    """The repository's own form wins: quantizing what is quantized would only lose more."""
    if stored.kind == "gguf":
        why = f"the file's weights ({stored.words}) are unpacked to {dtype} as they are loaded"
        return WeightFormat(dtype), _despite(why, asked not in (None, "none"), f"--quantization {asked}")
    if stored.kind == "awq":
        return _awq(facts, stored, preset, hardware, dtype, asked)
    if facts.adapter and stored.kind == "w8a8":
        raise UsageError(
            f"{facts.name} is stored as {stored.words}, which takes no adapter.",
            "Give the adapter its unquantized base: -m REPOSITORY --adapter ADAPTER.",
        )
    why = f"weights kept as the repository stores them: {stored.words}"
    why = _despite(why, asked not in (None, stored.kind), f"--quantization {asked}")
    return WeightFormat(dtype, stored.kind, stored.nested), _despite(
        why, preset.name in LOSSLESS, f"preset {preset.name}"
    )


def _awq(
    facts: ModelFacts,
    stored: StoredFormat,
    preset: Preset,
    hardware: Hardware,
    dtype: Dtype,
    asked: Quantization | None,
) -> Decision:
    """In 4 bits where PyTorch has a kernel and that is what is wanted, else unpacked, which loses nothing."""
    unpacked = WeightFormat(dtype)
    if facts.adapter:
        return unpacked, f"{stored.words}, unpacked to {dtype} so that the adapter can be merged"
    if asked == "none" or preset.name in LOSSLESS:
        whom = "asked" if asked == "none" else f"preset {preset.name} says"
        return unpacked, f"{stored.words}, unpacked to {dtype} as {whom}; --preset memory keeps the 4 bits"
    if not _has_kernel(hardware):
        return unpacked, f"{stored.words}, unpacked to {dtype}: PyTorch has no kernel for it on this device"
    why = f"weights kept in 4 bits as the repository stores them: {stored.words}"
    return WeightFormat(dtype, "awq"), _despite(why, asked is not None, f"--quantization {asked}")


def _has_kernel(hardware: Hardware) -> bool:
    """int4pack of PyTorch: on a CPU, and on CUDA from compute capability 8.0 on."""
    return hardware.device == "cpu" or (hardware.compute_capability or (0, 0)) >= (8, 0)


def _despite(why: str, contradicts: bool, what: str) -> str:
    return f"{why} (whatever {what} says)" if contradicts else why
