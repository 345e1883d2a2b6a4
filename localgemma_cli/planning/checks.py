"""Refuse settings that cannot work, before anything is downloaded, and warn of those that work badly."""

from localgemma_cli.errors import UsageError
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.hardware import Ability, Hardware
from localgemma_cli.planning.presets import Preset
from localgemma_cli.planning.settings import PlanSettings

_OVERFLOWS_FROM = 20_000_000_000  # parameters; of Gemma 2's sizes only 27b (27.2 billion) has more


def check_settings(facts: ModelFacts, settings: PlanSettings, hardware: Hardware) -> None:
    """Raise UsageError for the first combination that cannot work on this hardware."""
    if settings.weights.kind == "gguf":  # llama.cpp runs every type on every device
        return
    _check_dtype(facts, settings, hardware)
    _check_weights(facts, settings, hardware)
    _check_attention(facts, settings, hardware)


def _check_dtype(facts: ModelFacts, settings: PlanSettings, hardware: Hardware) -> None:
    dtype, architecture = settings.weights.dtype, facts.architecture
    if dtype == "float16" and architecture.family == "gemma2" and architecture.parameters > _OVERFLOWS_FROM:
        raise UsageError(
            f"{facts.name} overflows in float16: its answers are empty.",
            "Use --dtype bfloat16, or float32 on a device without bfloat16.",
        )
    if dtype == "bfloat16" and hardware.device == "mps" and not hardware.bf16:
        raise UsageError(
            f"bfloat16 is not supported on this device: {hardware.bf16.why}.", "Use --dtype float32."
        )


def _check_weights(facts: ModelFacts, settings: PlanSettings, hardware: Hardware) -> None:
    kind = settings.weights.kind
    if kind == "int4" and not hardware.int4:
        raise UsageError(
            f"int4 weights are not supported on {hardware.name}: {hardware.int4.why}.",
            "Use --quantization nf4.",
        )
    if kind == "int4" and not settings.weights.streamed:
        why = "an adapter needs other weights" if facts.adapter else "its layers' shapes do not allow it"
        raise UsageError(f"{facts.name} cannot be quantized to int4: {why}.", "Use --quantization nf4.")
    int8 = Ability(True, "") if settings.weights.streamed else hardware.int8
    ability = {"nf4": hardware.nf4, "int8": int8}.get(kind)
    if ability is not None and not ability:
        raise UsageError(
            f"{kind} weights are not supported on {hardware.name}: {ability.why}.",
            "Use --preset exact or speed, if necessary with a smaller model.",
        )
    if kind == "int8" and settings.compile != "none":
        raise UsageError(
            "int8 weights cannot be compiled: the graph would break at every layer.",
            "Use --no-compile, or --quantization nf4.",
        )


def _check_attention(facts: ModelFacts, settings: PlanSettings, hardware: Hardware) -> None:
    if settings.attention == "sdpa" and facts.architecture.softcap:
        raise UsageError(
            f"--attention sdpa cannot be used with {facts.name}: it would drop the cap on the model's"
            " attention scores and give wrong text.",
            "Use --attention eager.",
        )
    if settings.attention != "flash_attention_2":
        return
    if hardware.device != "cuda" or (hardware.compute_capability or (0, 0)) < (8, 0):
        raise UsageError(
            "flash_attention_2 needs an NVIDIA GPU of compute capability 8.0 or later.",
            "Use --attention eager.",
        )
    if settings.weights.dtype == "float32":
        raise UsageError(
            "flash_attention_2 only computes in 16 bits, and the dtype is float32.",
            "Use --dtype bfloat16, or --attention eager.",
        )


def list_warnings(
    facts: ModelFacts, preset: Preset, settings: PlanSettings, hardware: Hardware
) -> tuple[str, ...]:
    """Warnings of what works worse than the user may expect; `hardware.notes` come first."""
    dtype, kind, family = settings.weights.dtype, settings.weights.kind, facts.architecture.family
    native = "bfloat16" if hardware.bf16 or hardware.bf16_widened else "float32"
    found = (
        (
            preset.name == "exact" and kind != "gguf" and (settings.attention != "eager" or dtype != native),
            "with these overrides, exact no longer gives the reference's tokens",
        ),
        (family == "other", "this model is not a Gemma: it is untested, and the figures are estimates"),
        (
            dtype == "float16" and family != "gemma",
            "float16 can overflow in this model and spoil answers; bfloat16 does not",
        ),
        (
            kind == "int8" and family != "gemma",
            "bitsandbytes int8 passes activations through float16, which can overflow in this model",
        ),
        (
            dtype == "bfloat16" and native != "bfloat16",
            f"bfloat16 is slow on this device: {hardware.bf16.why}",
        ),
        *(_cpu_warnings(settings, hardware, native) if hardware.device == "cpu" else ()),
        (
            settings.compile != "none" and hardware.device != "cuda",
            "compiling is meant for NVIDIA GPUs; here it needs a C++ compiler and may not be faster",
        ),
    )
    return (*hardware.notes, *(text for applies, text in found if applies))


def _cpu_warnings(settings: PlanSettings, hardware: Hardware, native: str) -> tuple[tuple[object, str], ...]:
    """Whether each warning about a CPU applies, and its text; `native`: the dtype that it is fastest in."""
    dtype, kind = settings.weights.dtype, settings.weights.kind
    plain = (kind, dtype) == ("none", "bfloat16")
    return (
        (dtype == "float16", "float16 is slow on a CPU; float32 or bfloat16 is faster"),
        (
            kind == "nf4" and not hardware.nf4_kernel,
            f"4-bit weights are slower than {native} here: {hardware.nf4_kernel.why}"
            + ("; --quantization int4 is faster" if hardware.int4 and settings.weights.streamed else ""),
        ),
        (
            not hardware.extension and (settings.weights.grouped or (plain and hardware.bf16_widened)),
            f"{hardware.extension.why}; answers are slower, and prompts several times as slow",
        ),
    )
