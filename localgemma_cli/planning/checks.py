"""What cannot work, refused before anything is downloaded; and what works, but badly."""

from localgemma_cli.errors import UsageError
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.presets import Preset
from localgemma_cli.planning.settings import Settled

_OVERFLOWS_FROM = 20_000_000_000  # parameters; of Gemma 2's sizes only 27b (27.2 billion) is above


def refuse(facts: ModelFacts, settled: Settled, hardware: Hardware) -> None:
    """A UsageError for the first combination that cannot give an answer."""
    _refuse_dtype(facts, settled, hardware)
    _refuse_weights(facts, settled, hardware)
    _refuse_attention(facts, settled, hardware)


def _refuse_dtype(facts: ModelFacts, settled: Settled, hardware: Hardware) -> None:
    dtype, architecture = settled.weights.dtype, facts.architecture
    if dtype == "float16" and architecture.family == "gemma2" and architecture.parameters > _OVERFLOWS_FROM:
        raise UsageError(
            f"{facts.name} overflows in float16: its answers come out empty.",
            "Take --dtype bfloat16, or float32 where the device lacks it.",
        )
    if dtype == "bfloat16" and hardware.device == "mps" and not hardware.bf16:
        raise UsageError(f"bfloat16 does not run here: {hardware.bf16.why}.", "Take --dtype float32.")


def _refuse_weights(facts: ModelFacts, settled: Settled, hardware: Hardware) -> None:
    kind = settled.weights.kind
    if kind == "int4" and not hardware.int4:
        raise UsageError(
            f"int4 weights do not run on {hardware.name}: {hardware.int4.why}.", "Take --quantization nf4."
        )
    if kind == "int4" and not settled.weights.streamed:
        what = "an adapter beside it" if facts.adapter else "its layers' shapes"
        raise UsageError(f"{facts.name} cannot be in int4 with {what}.", "Take --quantization nf4.")
    ability = {"nf4": hardware.nf4, "int8": hardware.int8}.get(kind)
    if ability is not None and not ability:
        raise UsageError(
            f"{kind} weights do not run on {hardware.name}: {ability.why}.",
            "Take --preset exact or speed, with a smaller model if need be.",
        )
    if kind == "int8" and settled.compile != "none":
        raise UsageError(
            "int8 weights cannot be compiled: the graph breaks at every layer.",
            "Take --no-compile, or --quantization nf4.",
        )


def _refuse_attention(facts: ModelFacts, settled: Settled, hardware: Hardware) -> None:
    if settled.attention == "sdpa" and facts.architecture.softcap:
        raise UsageError(
            f"sdpa attention would drop the cap on {facts.name}'s attention scores and give wrong text.",
            "Take --attention eager.",
        )
    if settled.attention != "flash_attention_2":
        return
    if hardware.device != "cuda" or (hardware.compute_capability or (0, 0)) < (8, 0):
        raise UsageError(
            "flash_attention_2 needs an NVIDIA GPU of compute capability 8.0 or later.",
            "Take --attention eager.",
        )
    if settled.weights.dtype == "float32":
        raise UsageError(
            "flash_attention_2 computes in 16 bits only, and the dtype is float32.",
            "Take --dtype bfloat16, or --attention eager.",
        )


def cautions(facts: ModelFacts, preset: Preset, settled: Settled, hardware: Hardware) -> tuple[str, ...]:
    """Warnings for what will work worse than the user may expect."""
    dtype, kind, family = settled.weights.dtype, settled.weights.kind, facts.architecture.family
    has_bf16 = hardware.bf16 or hardware.bf16_widened
    native = "bfloat16" if has_bf16 else "float32"
    on_cpu = hardware.device == "cpu"
    found = (
        (
            preset.name == "exact" and (settled.attention != "eager" or dtype != native),
            "with these overrides exact no longer gives the reference's own tokens",
        ),
        (family == "other", "this is no Gemma: the figures are estimates, and nothing of it was tested"),
        (
            dtype == "float16" and family != "gemma",
            "float16 can overflow in this model and spoil answers; bfloat16 does not",
        ),
        (
            kind == "int8" and family != "gemma",
            "bitsandbytes int8 passes activations through float16, which can overflow in this model",
        ),
        (dtype == "bfloat16" and not has_bf16, f"bfloat16 will be slow: {hardware.bf16.why}"),
        (dtype == "float16" and on_cpu, "float16 is slow on a CPU; float32 or bfloat16 is faster"),
        (
            kind == "nf4" and on_cpu and not hardware.nf4_kernel,
            f"4-bit will be slower than {native}: {hardware.nf4_kernel.why}"
            + ("; --quantization int4 has one here" if hardware.int4 and settled.weights.streamed else ""),
        ),
        (
            kind == "int4" and on_cpu and not hardware.c_compiler,
            "no C compiler is here (cc, gcc or clang): with one, answers would come a third faster,"
            " and prompts would be read several times as fast",
        ),
        (
            (kind, dtype) == ("none", "bfloat16")
            and hardware.bf16_widened
            and hardware.own_bf16
            and not hardware.c_compiler,
            "no C compiler is here (cc, gcc or clang): with one, prompts would be read faster,"
            " and answers would be the reference's to the last bit",
        ),
        (
            settled.compile != "none" and hardware.device != "cuda",
            "compiling is meant for NVIDIA GPUs; here it needs a C++ compiler, and may not pay",
        ),
    )
    return (*hardware.notes, *(text for applies, text in found if applies))
