"""What a GGUF file says beyond sizes, in the words of a config.json: positions, windows, the width of a head.

As llama.cpp reads it (src/llama-model.cpp, load_hparams), defaults included.
"""

from collections.abc import Mapping
from pathlib import Path

from localgemma_cli.errors import NotFoundError

KNOWN = (
    "attention.sliding_window_pattern",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
)


def settings(
    path: Path, kind: str, values: Mapping[str, object], config: Mapping[str, object]
) -> dict[str, object]:
    """Of a Gemma of the architecture `kind`; `config`: what is known of it so far."""
    own = {key: values.get(f"{kind}.{key}") for key in KNOWN}
    found: dict[str, object] = {} if "rope_theta" in config else {"rope_theta": 10_000.0}
    width = config.get("head_dim")
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if width is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        width = found["head_dim"] = hidden // heads
    for key in ("attention.value_length", "rope.dimension_count"):
        if own[key] not in (None, width):
            raise unknown(path, f"{key} is {own[key]}, and a head is {width} wide")
    factor = _linear_factor(path, own)
    if factor is not None:
        found["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    local = own["rope.freq_base_swa"]
    if local is not None and kind == "gemma3":
        found["rope_local_base_freq"] = local
    elif local not in (None, config.get("rope_theta", 10_000.0)):
        raise unknown(path, "windows turn positions otherwise than whole layers do")
    pattern = own["attention.sliding_window_pattern"]
    if pattern is not None and kind != "gemma":
        found["layer_types"] = _layer_types(path, pattern, config.get("num_hidden_layers"))
    return found


def unknown(path: Path, what: str) -> NotFoundError:
    return NotFoundError(
        f"{path} cannot be loaded as it means to be: {what}.",
        "Take the model as safetensors, or another GGUF file of it.",
    )


def _linear_factor(path: Path, own: Mapping[str, object]) -> float | None:
    """By which positions are divided; None for not at all."""
    kind = own["rope.scaling.type"] or "linear"
    factor = own["rope.scaling.factor"] or own["rope.scale_linear"]
    if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
        return None
    if kind != "linear":
        raise unknown(path, f"it stretches positions by {kind}, and only linear stretching is known here")
    if own["rope.scaling.attn_factor"] not in (None, 0, 1):
        raise unknown(path, "it stretches positions, and attention with them")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1e6:
        raise unknown(path, f"it stretches positions by {factor!r}")
    return float(factor)


def _layer_types(path: Path, pattern: object, layers: object) -> list[str]:
    """From one number, how many layers a window's turn takes, or from a flag for each layer."""
    if not isinstance(layers, int):
        raise unknown(path, "it does not say how many layers it has")
    if isinstance(pattern, tuple):
        slides = [bool(each) for each in pattern]
    elif isinstance(pattern, int) and pattern > 0 and 0 < layers <= 1_000:
        slides = [(index + 1) % pattern != 0 for index in range(layers)]
    else:
        raise unknown(path, f"its windows follow the pattern {pattern!r}")
    if len(slides) != layers:
        raise unknown(path, f"its windows are given for {len(slides)} of {layers} layers")
    return ["sliding_attention" if each else "full_attention" for each in slides]
