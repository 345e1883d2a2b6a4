"""Decide every setting of a plan from preset, model, hardware and the user's overrides, with reasons."""

from collections.abc import Mapping
from dataclasses import dataclass

from localgemma_cli.errors import UsageError
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.hardware import DeviceMemory, Hardware
from localgemma_cli.planning.memory import WeightFormat, kv_cache_bytes
from localgemma_cli.planning.prequantized import keep_or_unpack
from localgemma_cli.planning.presets import LOSSLESS, DevicePreset, Preset
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
    parse_choice,
)

STREAMED_REASON: Mapping[DeviceKind, str] = {
    "cpu": "embedding rows are read from the model's file",
    "cuda": "the output head is in 4 bits, like the layers",
}
_INT4_HEAD = "the output head and the projections to values are in 8 bits, where 4 would cost most"
_INT4_VALUES = "the projections to values are in 8 bits, where 4 would cost most"
_COMPACT = "weights are packed losslessly into 12 bits each, because neighbouring exponents are alike"
_INT8_CACHE = "the KV cache is in 8 bits, which takes half the memory of bfloat16"
_FLASH = "not compiled, because flash_attention_2 would read the empty part of a static cache"
DEFAULT_CONTEXT = 8192  # tokens; the cache of Gemma 3's 131072 would be larger than the model


@dataclass(frozen=True)
class Overrides:
    """What the user asks for instead of the preset's values; sizes in bytes, None: not given."""

    dtype: str | None = None
    quantization: str | None = None
    attention: str | None = None
    compile: bool | None = None
    context: int | None = None
    device: str | None = None
    device_memory: DeviceMemory | None = None
    host_memory: int | None = None
    assistant: str | None = None
    draft: ModelFacts | None = None  # the model that --assistant names, if it names one
    processes: int = 1  # that share the model, each with a slice of every layer
    defaults: frozenset[str] = frozenset()  # of these fields: from config.toml or a variable


@dataclass(frozen=True)
class PlanSettings:
    """How one model runs on one device, before it is known which layers fit."""

    weights: WeightFormat
    attention: Attention
    cache: CacheKind
    compile: CompileMode
    offload: OffloadRule
    assistant: Assistant
    context: int
    reasons: tuple[str, ...]


def decide_settings(
    facts: ModelFacts, preset: Preset, hardware: Hardware, overrides: Overrides
) -> PlanSettings:
    """All settings of a plan; a UsageError if the overrides contradict the preset or each other."""
    wanted = preset.devices[hardware.device]
    dtype, why_dtype = _decide_dtype(wanted, hardware, overrides)
    weights, *why_weights = _decide_weights(facts, preset, wanted, dtype, overrides, hardware)
    own_kernels = dtype == "bfloat16" and _has_own_bf16_kernels(hardware)
    attention, why_attention = _decide_attention(facts, wanted, overrides, own_kernels)
    context, why_context = decide_context(facts, overrides)
    cache = _decide_cache(facts, wanted, dtype, attention, context, hardware)
    mode, cache, why_mode = _decide_compile(wanted, cache, weights, attention, hardware, overrides)
    assistant, cache, why_assistant = _decide_assistant(wanted, cache, mode, overrides)
    reasons = (
        *(why_dtype, *why_weights, why_attention, why_mode),
        *(_INT8_CACHE if cache == "int8" else "", why_assistant, why_context),
        _adapter_reason(facts, weights),
    )
    return PlanSettings(
        weights=weights,
        attention=attention,
        cache=cache,
        compile=mode,
        offload="none" if facts.stored else wanted.offload,
        assistant=assistant,
        context=context,
        reasons=tuple(reason for reason in reasons if reason),
    )


def _decide_dtype(wanted: DevicePreset, hardware: Hardware, overrides: Overrides) -> tuple[Dtype, str]:
    if overrides.dtype is not None:
        dtype = parse_choice(overrides.dtype, DTYPES, "--dtype")
        return dtype, f"{dtype}, as requested"
    if wanted.dtype != "native":
        return wanted.dtype, f"{wanted.dtype}, set by the preset"
    if hardware.bf16_widened:
        return "bfloat16", f"bfloat16, widened to float32 to multiply because {hardware.bf16.why}"
    native: Dtype = "bfloat16" if hardware.bf16 else "float32"
    return native, f"{native}: {hardware.bf16.why}"


def _decide_weights(
    facts: ModelFacts,
    preset: Preset,
    wanted: DevicePreset,
    dtype: Dtype,
    overrides: Overrides,
    hardware: Hardware,
) -> tuple[WeightFormat, *tuple[str, ...]]:
    """The format of the weights, and its reasons."""
    asked, kind = overrides.quantization, _decide_quantization(facts, wanted, hardware, overrides)
    if facts.stored:
        return keep_or_unpack(facts, facts.stored, preset, hardware, dtype, None if asked is None else kind)
    if asked not in (None, "none") and preset.name in LOSSLESS:
        raise UsageError(
            f"--quantization {kind} and --preset {preset.name} cannot be used together:"
            f" {preset.name} never quantizes.",
            "Remove one of them, or use --preset memory.",
        )
    device = hardware.device
    made_here = ("nf4", "int4", "int8") if device == "cpu" else ("nf4", "int4")
    streamed = kind in made_here and device in STREAMED_REASON and _can_stream(facts)
    plain = dtype == "bfloat16" and kind == "none" and not overrides.compile and wanted.compile == "none"
    compact = wanted.compact and plain and _has_own_bf16_kernels(hardware)
    nested = kind == "nf4" and wanted.nested_quantization and not streamed
    small_head = kind == "int4" and wanted.nested_quantization
    wide = streamed and device == "cuda" and not wanted.nested_quantization
    return (
        WeightFormat(dtype, kind, nested, streamed, wide, compact, small_head=small_head),
        f"weights in {kind}, as requested" if asked else "",
        (_INT4_VALUES if small_head else _INT4_HEAD) if kind == "int4" else "",
        STREAMED_REASON[device] if streamed else "",
        _COMPACT if compact else "",
    )


def _has_own_bf16_kernels(hardware: Hardware) -> bool:
    """Whether the C extension multiplies bfloat16 weights on this device."""
    return hardware.bf16_widened and bool(hardware.extension)


def _decide_quantization(
    facts: ModelFacts, wanted: DevicePreset, hardware: Hardware, overrides: Overrides
) -> Quantization:
    """The user's or the preset's quantization; int4 is only made from streamed weights."""
    if overrides.quantization is not None:
        return parse_choice(overrides.quantization, QUANTIZATIONS, "--quantization")
    if wanted.quantization != "4-bit":
        return wanted.quantization
    return "int4" if hardware.int4 and _can_stream(facts) else "nf4"


def _adapter_reason(facts: ModelFacts, weights: WeightFormat) -> str:
    if facts.adapter is None:
        return ""
    if weights.kind == "none":
        return f"{facts.adapter.words}, merged into the weights"
    return f"{facts.adapter.words}, kept beside the weights, because merging would round them again"


def _can_stream(facts: ModelFacts) -> bool:
    """Whether the model's quantized weights can be made and kept by this program, without bitsandbytes.

    Every row of every matrix must be a multiple of 64 wide, as in all Gemmas. Gemma 4 stores a factor per
    layer and a second embedding as well; an adapter needs the layers in their original form.
    """
    shape = facts.architecture
    return (
        not facts.adapter
        and shape.family not in ("gemma4_text", "other")
        and all(width % 64 == 0 for width in (shape.hidden, shape.heads * shape.head_dim, shape.ffn))
    )


def _decide_attention(
    facts: ModelFacts, wanted: DevicePreset, overrides: Overrides, own_kernels: bool
) -> tuple[Attention, str]:
    if overrides.attention is not None:
        attention = parse_choice(overrides.attention, ATTENTIONS, "--attention")
        return attention, f"{attention} attention, as requested"
    if wanted.attention != "auto":
        return wanted.attention, ""
    if facts.architecture.softcap:
        return "eager", "eager attention, because this model caps its attention scores and sdpa cannot"
    if own_kernels:
        return "eager", "eager attention, because localgemma has its own kernel for it on this device"
    return "sdpa", "sdpa attention, because this model does not cap its attention scores"


def _decide_cache(
    facts: ModelFacts,
    wanted: DevicePreset,
    dtype: Dtype,
    attention: Attention,
    context: int,
    hardware: Hardware,
) -> CacheKind:
    """The kind of KV cache; 8 bits only if localgemma's own attention kernel reads it.

    The kernel reads 32 numbers of a head at a time, so the head's width must be a multiple of 32.
    """
    shape = facts.architecture
    own = hardware.device == "cpu" and attention == "eager" and shape.family not in ("gemma4_text", "other")
    every: CacheKind = "int8" if own and all(group.head_dim % 32 == 0 for group in shape.groups) else "full"
    match wanted.cache:
        case "int8":
            return every
        case "least":
            kinds: tuple[CacheKind, ...] = ("sliding", every)
            return min(kinds, key=lambda kind: kv_cache_bytes(shape, dtype, kind, context))
        case kind:
            return kind


def _decide_compile(
    wanted: DevicePreset,
    cache: CacheKind,
    weights: WeightFormat,
    attention: Attention,
    hardware: Hardware,
    overrides: Overrides,
) -> tuple[CompileMode, CacheKind, str]:
    """Whether the decode step is compiled or recorded, and the cache for it.

    A compiled or recorded step needs a static cache; without one, a static cache has no benefit.
    """
    flash = attention == "flash_attention_2"
    if overrides.compile is None:
        # int8 and AWQ kernels synchronize with the CPU, which also copies offloaded layers: no graph
        on_host = weights.kind in ("int8", "awq") or wanted.offload != "none"
        grows = (flash and cache == "static") or overrides.processes > 1
        if not grows and not (on_host and wanted.compile == "graph"):
            return wanted.compile, cache, ""
    elif overrides.compile:
        if flash:
            raise UsageError(
                "--compile and --attention flash_attention_2 cannot be used together: a compiled step has a"
                " static cache, and flash_attention_2 would read the empty part of it.",
                "Use --no-compile, or --attention eager.",
            )
        mode: CompileMode = "reduce-overhead" if hardware.device == "cuda" else "default"
        return mode, "static", "compiled with a static cache, as requested"
    growing: CacheKind = "full" if cache == "static" else cache
    if overrides.compile is None:
        return "none", growing, _FLASH if flash else ""
    return "none", growing, "not compiled, as requested" if wanted.compile != "none" else ""


def _decide_assistant(
    wanted: DevicePreset, cache: CacheKind, mode: CompileMode, overrides: Overrides
) -> tuple[Assistant, CacheKind, str]:
    """Whether tokens are proposed by prompt lookup, and the cache for it.

    Rejected tokens are rolled back, which a sliding cache cannot do. Prompt lookup and a draft model both
    stop when they save no time. Proposed tokens are checked uncompiled, so a compiled step excludes lookup.
    """
    asked = overrides.assistant
    full: CacheKind = "full" if cache == "sliding" else cache
    if overrides.draft is not None:
        return "none", full, ""
    assistant = wanted.assistant if asked is None else parse_choice(asked, ASSISTANTS, "--assistant")
    if assistant == "none":
        return assistant, cache, ""
    if mode != "none":
        if asked is None:
            return "none", cache, ""
        raise UsageError(
            "--assistant lookup cannot be used with a compiled decode step.",
            "Use --no-compile, or remove --assistant.",
        )
    why = "prompt lookup proposes tokens from the conversation, and the model checks each of them"
    return assistant, full, why


def decide_context(facts: ModelFacts, overrides: Overrides) -> tuple[int, str]:
    """The context in tokens, and why."""
    longest = facts.architecture.context_length
    if overrides.context is None:
        context = min(longest, DEFAULT_CONTEXT)
        shorter = f"a context of {context} of the model's {longest} tokens; --context sets another"
        return context, shorter if context < longest else ""
    if not 1 <= overrides.context <= longest:
        raise UsageError(
            f"--context must be between 1 and {longest} tokens for {facts.name} (got {overrides.context}).",
            f"Use --context {longest} or less.",
        )
    return overrides.context, f"a context of {overrides.context} tokens, as requested"
