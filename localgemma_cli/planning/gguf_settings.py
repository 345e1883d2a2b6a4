"""The settings of a GGUF file, which llama.cpp runs as it is stored."""

import subprocess
import sys
from collections.abc import Iterator

from localgemma_cli.errors import UsageError
from localgemma_cli.models.architecture import StoredFormat
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.planning.memory import WeightFormat
from localgemma_cli.planning.presets import Preset
from localgemma_cli.planning.settings import Overrides, PlanSettings, decide_context
from localgemma_cli.types import ASSISTANTS, CacheKind, DeviceKind, parse_choice

_INT8_CACHE = "the KV cache is in 8 bits (q8_0), which takes about half the memory of 16 bits"
_LIST_DEVICES = "import xllamacpp; print(*(each['type'] for each in xllamacpp.get_device_info()))"


def decide_gguf_settings(
    facts: ModelFacts, stored: StoredFormat, preset: Preset, device: DeviceKind, overrides: Overrides
) -> PlanSettings:
    """All settings; a UsageError for options that change what the file or llama.cpp decides."""
    if overrides.processes > 1:
        raise UsageError("A GGUF file cannot be split between processes.", "Run localgemma without torchrun.")
    ignored = tuple(_ignored_options(facts, overrides))
    context, why_context = decide_context(facts, overrides)
    # The presets whose cache is in 8 bits on a CPU quantize the weights on every device.
    compact = preset.devices[device].quantization != "none"
    cache: CacheKind = "q8_0" if compact else "f16"
    reasons = (
        f"llama.cpp runs the file as it is stored: {stored.words}",
        *(f"{option} has no effect on a GGUF file" for option in ignored),
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


def _ignored_options(facts: ModelFacts, overrides: Overrides) -> Iterator[str]:
    """Options that only config.toml or a variable sets; a UsageError for those of the command line."""
    if overrides.draft is None and overrides.assistant is not None:
        parse_choice(overrides.assistant, ASSISTANTS, "--assistant")
    given = {
        "quantization": overrides.quantization is not None,
        "dtype": overrides.dtype is not None,
        "attention": overrides.attention is not None,
        "compile": bool(overrides.compile),
        "assistant": overrides.draft is not None or overrides.assistant not in (None, "none"),
        "adapter": facts.adapter is not None,
    }
    for name in (name for name, is_given in given.items() if is_given):
        if name not in overrides.defaults:
            raise UsageError(
                f"--{name} cannot be used with a GGUF file, which llama.cpp runs as it is stored.",
                f"Remove --{name}, or use the model's safetensors repository.",
            )
        yield name


def llamacpp_has_gpu() -> bool:
    """Whether the installed llama.cpp finds a GPU; not without xllamacpp, which loading reports.

    In a process of its own, because llama.cpp takes memory of a GPU that it finds.
    """
    done = subprocess.run([sys.executable, "-P", "-c", _LIST_DEVICES], capture_output=True, check=False)
    return b"GPU" in done.stdout
