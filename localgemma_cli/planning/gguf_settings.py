"""The settings of a GGUF file, which llama.cpp runs as it is stored."""

from localgemma_cli.errors import UsageError
from localgemma_cli.models.architecture import StoredFormat
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.memory import WeightFormat
from localgemma_cli.planning.presets import Preset
from localgemma_cli.planning.settings import Overrides, PlanSettings, decide_context
from localgemma_cli.types import ASSISTANTS, CacheKind, DeviceKind, parse_choice

_INT8_CACHE = "the KV cache is in 8 bits (q8_0), which takes about half the memory of 16 bits"


def decide_gguf_settings(
    facts: ModelFacts, stored: StoredFormat, preset: Preset, device: DeviceKind, overrides: Overrides
) -> PlanSettings:
    """All settings; a UsageError for options that change what the file or llama.cpp decides."""
    _refuse_overrides(facts, overrides)
    context, why_context = decide_context(facts, overrides)
    # The presets whose cache is in 8 bits on a CPU quantize the weights on every device.
    compact = preset.devices[device].quantization != "none"
    cache: CacheKind = "q8_0" if compact else "f16"
    reasons = (
        f"llama.cpp runs the file as it is stored: {stored.words}",
        _INT8_CACHE if compact else "",
        why_context,
    )
    return PlanSettings(
        weights=WeightFormat("float32", "gguf", stored_bytes=stored.bytes),
        attention="llama.cpp",
        cache=cache,
        compile="none",
        offload="host" if device == "cuda" else "none",
        assistant="none",
        context=context,
        reasons=tuple(reason for reason in reasons if reason),
    )


def _refuse_overrides(facts: ModelFacts, overrides: Overrides) -> None:
    if overrides.draft is None and overrides.assistant is not None:
        parse_choice(overrides.assistant, ASSISTANTS, "--assistant")
    decided = {
        "--quantization": overrides.quantization is not None,
        "--dtype": overrides.dtype is not None,
        "--attention": overrides.attention is not None,
        "--compile": bool(overrides.compile),
        "--assistant": overrides.draft is not None or overrides.assistant not in (None, "none"),
        "--adapter": facts.adapter is not None,
    }
    for option, given in decided.items():
        if given:
            raise UsageError(
                f"{option} cannot be used with a GGUF file, which llama.cpp runs as it is stored.",
                f"Remove {option}, or use the model's safetensors repository.",
            )
    if overrides.processes > 1:
        raise UsageError("A GGUF file cannot be split between processes.", "Run localgemma without torchrun.")
