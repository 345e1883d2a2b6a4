"""Decide whether the weights of a quantized checkpoint are kept in its format or unpacked, with reasons."""

from localgemma_cli.errors import UsageError
from localgemma_cli.models.architecture import StoredFormat
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.memory import WeightFormat
from localgemma_cli.planning.presets import LOSSLESS, Preset
from localgemma_cli.types import Dtype, Quantization

Decision = tuple[WeightFormat, str]


def keep_or_unpack(
    facts: ModelFacts,
    stored: StoredFormat,
    preset: Preset,
    hardware: Hardware,
    dtype: Dtype,
    asked: Quantization | None,
) -> Decision:
    """The checkpoint's own format is kept where it can be: quantizing it again would lose more."""
    if stored.kind == "gguf":
        why = unpack_reason(stored, preset) or ""
        why = f"PyTorch runs the file, its weights ({stored.words}) unpacked to {dtype}: {why}"
        return WeightFormat(dtype), _ignoring(why, asked not in (None, "none"), f"--quantization {asked}")
    if stored.kind == "awq":
        return _keep_or_unpack_awq(facts, stored, preset, hardware, dtype, asked)
    if facts.adapter and stored.kind == "w8a8":
        raise UsageError(
            f"{facts.name} is stored as {stored.words}, which does not support adapters.",
            "Name the adapter's unquantized base: -m REPOSITORY --adapter ADAPTER.",
        )
    why = f"weights are kept as the repository stores them: {stored.words}"
    why = _ignoring(why, asked not in (None, stored.kind), f"--quantization {asked}")
    why = _ignoring(why, preset.name in LOSSLESS, f"preset {preset.name}")
    return WeightFormat(dtype, stored.kind, stored.nested), why


def unpack_reason(stored: StoredFormat, preset: Preset) -> str | None:
    """Why PyTorch runs a GGUF file; None where llama.cpp does."""
    if stored.why_unpacked:
        return f"llama.cpp does not support {stored.why_unpacked}"
    if preset.name == "exact" and not stored.is_quantized:
        return "exact gives the tokens of transformers; --preset speed runs it on llama.cpp"
    return None


def runs_on_llamacpp(facts: ModelFacts, preset: Preset) -> bool:
    stored = facts.stored
    return stored is not None and stored.kind == "gguf" and unpack_reason(stored, preset) is None


def _keep_or_unpack_awq(
    facts: ModelFacts,
    stored: StoredFormat,
    preset: Preset,
    hardware: Hardware,
    dtype: Dtype,
    asked: Quantization | None,
) -> Decision:
    """Kept in 4 bits if PyTorch has a kernel and the preset allows it, else unpacked without loss."""
    unpacked = WeightFormat(dtype)
    if facts.adapter:
        return unpacked, f"{stored.words}, unpacked to {dtype} so that the adapter can be merged"
    if asked == "none":
        return unpacked, f"{stored.words}, unpacked to {dtype} as requested; --preset memory keeps the 4 bits"
    if preset.name in LOSSLESS:
        why = f"because preset {preset.name} does not quantize; --preset memory keeps the 4 bits"
        return unpacked, f"{stored.words}, unpacked to {dtype} {why}"
    if not _has_awq_kernel(hardware):
        return unpacked, f"{stored.words}, unpacked to {dtype} because PyTorch has no kernel for it here"
    why = f"weights are kept in 4 bits as the repository stores them: {stored.words}"
    return WeightFormat(dtype, "awq"), _ignoring(why, asked is not None, f"--quantization {asked}")


def _has_awq_kernel(hardware: Hardware) -> bool:
    """Whether PyTorch has int4pack there: on a CPU, and on CUDA from compute capability 8.0."""
    return hardware.device == "cpu" or (hardware.compute_capability or (0, 0)) >= (8, 0)


def _ignoring(why: str, contradicts: bool, option: str) -> str:
    return f"{why} ({option} has no effect)" if contradicts else why
