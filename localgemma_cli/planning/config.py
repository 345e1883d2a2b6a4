"""What a model's own config.json says, read without transformers."""

from collections.abc import Mapping

from localgemma_cli.errors import NotFoundError
from localgemma_cli.planning.architecture import Architecture, Family, StoredFormat

Config = Mapping[str, object]

# What a config.json may leave out, as transformers 5.23 fills it in (Gemma-, Gemma2- and Gemma3TextConfig);
# google/gemma-3-4b-it does leave out heads, head_dim and vocabulary.
_DEFAULTS: Mapping[Family, Mapping[str, object]] = {
    "gemma": {
        "vocab_size": 256_000,
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "max_position_embeddings": 8192,
    },
    "gemma2": {
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": 50.0,
    },
    "gemma3_text": {
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
}
_FAMILIES: Mapping[str, Family] = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",  # text and images; the text half is what runs here
    "gemma3_text": "gemma3_text",
}
_CHAT_CLASSES = (
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
)


def architecture_of(config: Config, name: str) -> Architecture:
    """The decoder that `config` describes; a NotFoundError where it is no Gemma that chats."""
    family = _family(config, name)
    text = config.get("text_config")
    own = {**_DEFAULTS[family], **(text if isinstance(text, Mapping) else config)}
    window = _positive(own, "sliding_window", name) if own.get("sliding_window") else None
    layers = _positive(own, "num_hidden_layers", name)
    return Architecture(
        family=family,
        layers=layers,
        hidden=_positive(own, "hidden_size", name),
        heads=_positive(own, "num_attention_heads", name),
        kv_heads=_positive(own, "num_key_value_heads", name),
        head_dim=_positive(own, "head_dim", name),
        ffn=_positive(own, "intermediate_size", name),
        vocabulary=_positive(own, "vocab_size", name),
        context_length=_positive(own, "max_position_embeddings", name),
        sliding_window=window,
        sliding_layers=_sliding_layers(own, family, layers, name) if window else 0,
        softcap=own.get("attn_logit_softcapping") is not None,
        tied_head=bool(own.get("tie_word_embeddings", config.get("tie_word_embeddings", True))),
    )


def stored_format_of(config: Config, name: str) -> StoredFormat | None:
    """How a pre-quantized checkpoint is stored; None for an ordinary one."""
    stored = config.get("quantization_config", config.get("compression_config"))
    if not isinstance(stored, Mapping):
        return None
    method = stored.get("quant_method")
    if method == "bitsandbytes" and stored.get("load_in_8bit"):
        return StoredFormat("int8")
    if method == "bitsandbytes" and stored.get("bnb_4bit_quant_type") == "nf4":
        return StoredFormat("nf4", nested=bool(stored.get("bnb_4bit_use_double_quant")))
    if method == "awq" and stored.get("bits") == 4 and str(stored.get("version", "gemm")).lower() == "gemm":
        group = stored.get("group_size", 128)
        return StoredFormat("awq", group=group if isinstance(group, int) else 128)
    if method == "compressed-tensors" and _is_w8a8(stored):
        return StoredFormat("w8a8")
    raise NotFoundError(
        f"{name} is stored in a quantized form that localgemma does not load ({method or 'unnamed'}).",
        "Take the model's unquantized repository, or one in bitsandbytes NF4 or int8, AWQ (GEMM) or W8A8.",
    )


def _is_w8a8(stored: Config) -> bool:
    """int8 weights with one scale per row, and activations rounded to int8 as they come, token by token."""
    groups = stored.get("config_groups")
    if stored.get("format") != "int-quantized" or not isinstance(groups, Mapping) or not groups:
        return False
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return all(
        isinstance(group, Mapping)
        and _has(group.get("weights"), weights)
        and _has(group.get("input_activations"), activations)
        for group in groups.values()
    )


def _has(what: object, values: Config) -> bool:
    return isinstance(what, Mapping) and all(what.get(key) == value for key, value in values.items())


def _family(config: Config, name: str) -> Family:
    kind = config.get("model_type")
    family = _FAMILIES.get(kind) if isinstance(kind, str) else None
    classes = config.get("architectures")
    chats = not isinstance(classes, list) or any(each in _CHAT_CLASSES for each in classes)
    if family and chats:
        return family
    what = classes[0] if isinstance(classes, list) and classes else kind
    raise NotFoundError(
        f"{name} is not a Gemma 1, 2 or 3 chat model: its config.json says {what or 'nothing of its kind'}.",
        "See `localgemma models list` for models that run here.",
    )


def _sliding_layers(own: Config, family: Family, layers: int, name: str) -> int:
    types = own.get("layer_types")
    if isinstance(types, list):
        return sum(each == "sliding_attention" for each in types)
    if family == "gemma":
        return 0
    # Gemma 2 alternates whatever its config says; only Gemma 3 reads the pattern (transformers 5.23).
    pattern = 2 if family == "gemma2" else _positive(own, "sliding_window_pattern", name)
    return layers - layers // pattern


def _positive(own: Config, key: str, name: str) -> int:
    value = own.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise NotFoundError(
        f"The config.json of {name} is damaged: {key} is {value!r}, not a positive whole number.",
        "Download the model again, or tell its author.",
    )
