"""A GGUF header as the config.json of the same model.

As llama.cpp reads it (src/llama-model.cpp, load_hparams), defaults included. A key or tensor that is not
supported and would change the answers is refused.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from localgemma_cli.documents import format_value, name_or
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.gguf_header import Gguf

_MODEL_TYPES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text"}
_KEYS = {  # llama.cpp's key of a number, and config.json's
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
}
_DERIVED_KEYS = (  # supported as well, with no key of their own in config.json
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
_TENSOR_NAMES = re.compile(r"(token_embd|output_norm|output|blk\.\d+\.(attn|ffn|post)_\w+)\.weight")
_VISION_PREFIXES = ("vision.", "mm.", "v.")  # not loaded
# The 27b sizes scale attention by hidden_size / heads instead of head_dim.
_SCALED_BY_HIDDEN = {("gemma2", 46), ("gemma3", 62)}


def gguf_config(file: Gguf) -> dict[str, object]:
    """The values of a config.json; NotFoundError for what is not a supported Gemma."""
    kind = _supported_architecture(file)
    _require_supported(file, kind)
    found = {name: file.values.get(f"{kind}.{key}") for key, name in _KEYS.items()}
    config = {name: value for name, value in found.items() if value is not None}
    config |= _derived(file.path, kind, file.values, config)
    layers, heads, hidden = (
        config.get(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    is_scaled = (kind, layers) in _SCALED_BY_HIDDEN
    if is_scaled and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        config["query_pre_attn_scalar"] = hidden // heads
    elif kind != "gemma":
        config["query_pre_attn_scalar"] = config.get("head_dim", 256)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None:
        config["vocab_size"] = embedding.shape[0]
    return {
        **config,
        "model_type": _MODEL_TYPES[kind],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_special_ids(file.values),
    }


def why_unpacked(file: Gguf) -> str:
    """What in the file llama.cpp refuses or computes otherwise (b11549); empty for most files."""
    kind = file.values.get("general.architecture")
    if kind in ("gemma", "gemma2") and "output.weight" in file.tensors:
        return f"a {kind} with an output head of its own"
    scaling, factor = (file.values.get(f"{kind}.rope.scaling.{key}") for key in ("type", "factor"))
    if kind == "gemma2" and scaling == "none" and factor not in (None, 0, 1):
        return "a gemma2 with a RoPE factor that its type switches off"
    return ""


def _supported_architecture(file: Gguf) -> str:
    kind = file.values.get("general.architecture")
    if isinstance(kind, str) and kind in _MODEL_TYPES:
        return kind
    named = name_or(kind, "nothing")
    what = f"is a {named}" if named.startswith("gemma") else f"is not a Gemma, but {named}"
    raise NotFoundError(
        f"{file.path} {what}, which cannot be run from a GGUF file.",
        f"Supported: {', '.join(_MODEL_TYPES)}. For any other Gemma, use the safetensors repository.",
    )


def _require_supported(file: Gguf, kind: str) -> None:
    for key in file.values:
        own = key.removeprefix(f"{kind}.")
        if own != key and own not in (*_KEYS, *_DERIVED_KEYS) and not own.startswith(_VISION_PREFIXES):
            raise _unsupported(file.path, f"the key {format_value(key)}")
    for name in file.tensors:
        if not name.startswith(_VISION_PREFIXES) and not _TENSOR_NAMES.fullmatch(name):
            raise _unsupported(file.path, f"the tensor {format_value(name)}")


def _special_ids(values: Mapping[str, object]) -> dict[str, object]:
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    ids = {config: values.get(f"tokenizer.ggml.{name}_token_id") for name, config in names.items()}
    return {config: number for config, number in ids.items() if number is not None}


def _derived(
    path: Path, kind: str, values: Mapping[str, object], config: Mapping[str, object]
) -> dict[str, object]:
    """Positions, windows and the width of a head; `config`: the values read so far."""
    own = {key: values.get(f"{kind}.{key}") for key in _DERIVED_KEYS}
    found: dict[str, object] = {} if "rope_theta" in config else {"rope_theta": 10_000.0}
    width = config.get("head_dim")
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if width is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        width = found["head_dim"] = hidden // heads
    for key in ("attention.value_length", "rope.dimension_count"):
        if own[key] not in (None, width):
            raise _unsupported(path, f"{key} = {own[key]} with heads of width {width}")
    factor = _linear_factor(path, own)
    if factor is not None:
        found["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    local = own["rope.freq_base_swa"]
    if local is not None and kind == "gemma3":
        found["rope_local_base_freq"] = local
    elif local not in (None, config.get("rope_theta", 10_000.0)):
        raise _unsupported(path, "a RoPE base of its own for sliding layers")
    pattern = own["attention.sliding_window_pattern"]
    if pattern is not None and kind != "gemma":
        found["layer_types"] = _layer_types(path, pattern, config.get("num_hidden_layers"))
    return found


def _linear_factor(path: Path, own: Mapping[str, object]) -> float | None:
    """The divisor of positions (linear RoPE scaling); None without scaling."""
    kind = own["rope.scaling.type"] or "linear"
    factor = own["rope.scaling.factor"] or own["rope.scale_linear"]
    if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
        return None
    if kind != "linear":
        raise _unsupported(path, f"{kind} RoPE scaling (only linear is supported)")
    if own["rope.scaling.attn_factor"] not in (None, 0, 1):
        raise _unsupported(path, "RoPE scaling with a factor for attention")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1e6:
        raise _unsupported(path, f"RoPE scaling by {factor!r}")
    return float(factor)


def _layer_types(path: Path, pattern: object, layers: object) -> list[str]:
    """`pattern`: every how many layers one is full, or for each layer whether it is sliding."""
    if not isinstance(layers, int):
        raise _unsupported(path, "a window pattern without a number of layers")
    if isinstance(pattern, tuple):
        slides = [bool(each) for each in pattern]
    elif isinstance(pattern, int) and pattern > 0 and 0 < layers <= 1_000:
        slides = [(index + 1) % pattern != 0 for index in range(layers)]
    else:
        raise _unsupported(path, f"the window pattern {pattern!r}")
    if len(slides) != layers:
        raise _unsupported(path, f"a window pattern for {len(slides)} of {layers} layers")
    return ["sliding_attention" if each else "full_attention" for each in slides]


def _unsupported(path: Path, what: str) -> NotFoundError:
    return NotFoundError(
        f"{path} has {what}, which localgemma does not support.",
        "Use the model's safetensors repository, or another GGUF file of it.",
    )
