"""One preset on one device, with what the user asked for instead: every choice made, and why."""

from collections.abc import Mapping
from dataclasses import dataclass

from localgemma_cli.errors import UsageError
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.hardware import DeviceMemory, Hardware
from localgemma_cli.planning.memory import WeightFormat, kv_cache_bytes
from localgemma_cli.planning.prequantized import as_stored
from localgemma_cli.planning.presets import LOSSLESS, Preset, Settings
from localgemma_cli.types import (
    ASSISTANTS,
    ATTENTIONS,
    DTYPES,
    QUANTIZATIONS,
    Assistant,
    Attention,
    CacheKind,
    CompileMode,
    DeviceKind,
    Dtype,
    OffloadRule,
    Quantization,
    chosen,
)

# As `python -m localgemma_cli.demo.precision` measured it: a head in 4 bits, layers unquantized.
_HEAD = "the output head is in 4 bits like the layers, which leaves 99.9 % of the demo's tokens the same"
STREAMED: Mapping[DeviceKind, str] = {
    "cpu": f"{_HEAD}; embeddings are read from the model's file",
    "cuda": _HEAD,
}
_COMPACT = "weights are packed into 12 bits each without loss, as neighbours' exponents are alike"
_INT8_CACHE = "the KV cache is in 8 bits, half of bfloat16's; the demo's tokens stay the same"
_FLASH = "not compiled: flash_attention_2 would read the empty part of a cache of fixed size"
DEFAULT_CONTEXT = 8192  # tokens; the cache of Gemma 3's 131072 would be larger than the model


@dataclass(frozen=True)
class Overrides:
    """What the user said instead of what the preset says; sizes in bytes, None where nothing was said."""

    dtype: str | None = None
    quantization: str | None = None
    attention: str | None = None
    compile: bool | None = None
    context: int | None = None
    device: str | None = None
    device_memory: DeviceMemory | None = None
    host_memory: int | None = None
    assistant: str | None = None
    draft: ModelFacts | None = None  # the model that --assistant names, where it names one
    processes: int = 1  # that share the model, each with a slice of every layer


@dataclass(frozen=True)
class Settled:
    weights: WeightFormat
    attention: Attention
    cache: CacheKind
    compile: CompileMode
    offload: OffloadRule
    assistant: Assistant
    context: int
    reasons: tuple[str, ...]


def settle(facts: ModelFacts, preset: Preset, hardware: Hardware, overrides: Overrides) -> Settled:
    """Every setting of a plan; a UsageError where what was asked for contradicts itself."""
    settings = preset.devices[hardware.device]
    dtype, why_dtype = _dtype(settings, hardware, overrides)
    weights, why_weights = _weights(facts, preset, settings, dtype, overrides, hardware)
    ours = dtype == "bfloat16" and _multiplies_bfloat16(hardware)
    attention, why_attention = _attention(facts, settings, overrides, ours)
    context, why_context = _context(facts, overrides)
    cache = _cache(facts, settings, dtype, attention, context, hardware)
    mode, cache, why_mode = _compile(settings, cache, weights, attention, hardware, overrides)
    assistant, cache, why_assistant = _assistant(settings, cache, mode, overrides)
    why_cache = _INT8_CACHE if cache == "int8" else ""
    reasons = (why_dtype, why_weights, why_attention, why_mode, why_cache, why_assistant, why_context)
    return Settled(
        weights=weights,
        attention=attention,
        cache=cache,
        compile=mode,
        offload="none" if facts.stored else settings.offload,
        assistant=assistant,
        context=context,
        reasons=tuple(reason for reason in reasons if reason),
    )


def _dtype(settings: Settings, hardware: Hardware, overrides: Overrides) -> tuple[Dtype, str]:
    if overrides.dtype is not None:
        dtype = chosen(overrides.dtype, DTYPES, "--dtype")
        return dtype, f"{dtype}, as asked"
    if settings.dtype != "native":
        return settings.dtype, f"{settings.dtype}, as the preset says"
    if hardware.bf16_widened:
        return "bfloat16", f"bfloat16: {hardware.bf16.why}, so it is widened to multiply"
    native: Dtype = "bfloat16" if hardware.bf16 else "float32"
    return native, f"{native}: {hardware.bf16.why}"


def _weights(
    facts: ModelFacts,
    preset: Preset,
    settings: Settings,
    dtype: Dtype,
    overrides: Overrides,
    hardware: Hardware,
) -> tuple[WeightFormat, str]:
    asked, kind = overrides.quantization, _kind(facts, settings, hardware, overrides)
    if facts.stored:
        return as_stored(facts, facts.stored, preset, hardware, dtype, None if asked is None else kind)
    if asked not in (None, "none") and preset.name in LOSSLESS:
        raise UsageError(
            f"--quantization {kind} contradicts --preset {preset.name}, which never quantizes.",
            "Leave one of them out, or take --preset memory.",
        )
    device = hardware.device
    streamed = kind in ("nf4", "int4") and device in STREAMED and _streams(facts)
    plain = dtype == "bfloat16" and kind == "none" and not overrides.compile and settings.compile == "none"
    compact = settings.compact and plain and _multiplies_bfloat16(hardware)
    nested = kind == "nf4" and settings.nested_quantization and not streamed
    wide = streamed and device == "cuda" and not settings.nested_quantization
    why = (
        _why_kind(settings, kind, asked, hardware),
        STREAMED[device] if streamed else "",
        _COMPACT if compact else "",
    )
    return WeightFormat(dtype, kind, nested, streamed, wide, compact), "; ".join(filter(None, why))


def _multiplies_bfloat16(hardware: Hardware) -> bool:
    """Whether there are products of our own for it."""
    return hardware.bf16_widened and hardware.own_bf16 and hardware.c_compiler


def _kind(facts: ModelFacts, settings: Settings, hardware: Hardware, overrides: Overrides) -> Quantization:
    """The user's or the preset's kind of weights; int4 is made by streaming only."""
    if overrides.quantization is not None:
        return chosen(overrides.quantization, QUANTIZATIONS, "--quantization")
    if settings.quantization != "4-bit":
        return settings.quantization
    has_int4 = hardware.device == "cpu" and hardware.int4 and _streams(facts)
    return "int4" if has_int4 and not hardware.nf4_kernel else "nf4"


def _why_kind(settings: Settings, kind: Quantization, asked: str | None, hardware: Hardware) -> str:
    if asked:
        return f"weights in {kind}, as asked"
    if kind == "int4" and settings.quantization == "4-bit":
        return f"weights in int4, which have a fast product here: {hardware.nf4_kernel.why}"
    return ""


def _streams(facts: ModelFacts) -> bool:
    """Whether each row of every matrix is whole blocks of 64, as in all Gemmas, and nothing else is stored.

    Gemma 4 keeps a factor per layer and a second embedding besides; an adapter wants the layers as they were.
    """
    shape = facts.architecture
    return (
        not facts.adapter
        and shape.family not in ("gemma4_text", "other")
        and all(width % 64 == 0 for width in (shape.hidden, shape.heads * shape.head_dim, shape.ffn))
    )


def _attention(
    facts: ModelFacts, settings: Settings, overrides: Overrides, ours: bool
) -> tuple[Attention, str]:
    softcap = facts.architecture.softcap
    if overrides.attention is not None:
        attention = chosen(overrides.attention, ATTENTIONS, "--attention")
        return attention, f"{attention} attention, as asked"
    if settings.attention != "auto":
        return settings.attention, ""
    if softcap:
        return "eager", "eager attention: this model caps its attention scores, which sdpa leaves out"
    if ours:
        return "eager", "eager attention: a product of our own computes that here"
    return "sdpa", "sdpa attention: this model needs no cap on its scores"


def _cache(
    facts: ModelFacts,
    settings: Settings,
    dtype: Dtype,
    attention: Attention,
    context: int,
    hardware: Hardware,
) -> CacheKind:
    """8 bits only where our own attention reads them.

    The kernel takes 32 numbers of a head at a time, and reads past the end of one that is no multiple.
    """
    shape = facts.architecture
    ours = hardware.device == "cpu" and attention == "eager" and shape.family not in ("gemma4_text", "other")
    whole: CacheKind = "int8" if ours and all(group.head_dim % 32 == 0 for group in shape.groups) else "full"
    match settings.cache:
        case "int8":
            return whole
        case "least":
            kinds: tuple[CacheKind, ...] = ("sliding", whole)
            return min(kinds, key=lambda kind: kv_cache_bytes(shape, dtype, kind, context))
        case kind:
            return kind


def _compile(
    settings: Settings,
    cache: CacheKind,
    weights: WeightFormat,
    attention: Attention,
    hardware: Hardware,
    overrides: Overrides,
) -> tuple[CompileMode, CacheKind, str]:
    """A compiled or recorded step needs a cache of fixed size; without one, a static cache has no use."""
    flash = attention == "flash_attention_2"
    if overrides.compile is None:
        # int8 and AWQ kernels ask the host, offloaded layers are copied by it: neither can be recorded
        hosted = weights.kind in ("int8", "awq") or settings.offload != "none"
        grows = (flash and cache == "static") or overrides.processes > 1
        if not grows and not (hosted and settings.compile == "graph"):
            return settings.compile, cache, ""
    elif overrides.compile:
        if flash:
            raise UsageError(
                "A compiled step has a cache of fixed size, and flash_attention_2 would read its empty part.",
                "Take --no-compile, or --attention eager.",
            )
        mode: CompileMode = "reduce-overhead" if hardware.device == "cuda" else "default"
        return mode, "static", "compiled, as asked, over a static cache"
    growing: CacheKind = "full" if cache == "static" else cache
    if overrides.compile is None:
        return "none", growing, _FLASH if flash else ""
    return "none", growing, "not compiled, as asked" if settings.compile != "none" else ""


def _assistant(
    settings: Settings, cache: CacheKind, mode: CompileMode, overrides: Overrides
) -> tuple[Assistant, CacheKind, str]:
    """Wrong guesses are rolled back, which a cache that only keeps windows cannot do.

    Both kinds of guesses stop by the clock where they do not pay. Beside a compiled step they are checked
    uncompiled, so that look-up, which costs nothing to leave out, is not for it.
    """
    asked = overrides.assistant
    full: CacheKind = "full" if cache == "sliding" else cache
    if overrides.draft is not None:
        return "none", full, ""
    assistant = settings.assistant if asked is None else chosen(asked, ASSISTANTS, "--assistant")
    if assistant == "none":
        return assistant, cache, ""
    if mode != "none":
        if asked is None:
            return "none", cache, ""
        raise UsageError(
            "--assistant lookup checks several tokens at once, and a compiled step takes one.",
            "Take --no-compile, or leave --assistant out.",
        )
    why = f"{assistant} guesses from what was said before; the answer stays the model's own"
    return assistant, full, why


def _context(facts: ModelFacts, overrides: Overrides) -> tuple[int, str]:
    longest = facts.architecture.context_length
    if overrides.context is None:
        context = min(longest, DEFAULT_CONTEXT)
        shorter = f"a context of {context} of the model's {longest} tokens; --context takes more"
        return context, shorter if context < longest else ""
    if not 1 <= overrides.context <= longest:
        raise UsageError(
            f"--context {overrides.context} is outside what {facts.name} can read: 1 to {longest} tokens.",
            f"Take --context {longest} or less.",
        )
    return overrides.context, f"a context of {overrides.context} tokens, as asked"
