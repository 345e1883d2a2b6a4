"""What a model's own config.json says, read without transformers."""

from collections.abc import Mapping

from localgemma_cli.errors import NotFoundError
from localgemma_cli.planning.architecture import Architecture, Family, Gemma4Parts, StoredFormat

Config = Mapping[str, object]

# What a config.json may leave out, as transformers 5.23 fills it in (Gemma-, Gemma2-, Gemma3Text- …Config);
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
    "gemma4_text": {
        "vocab_size": 262_144,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "global_head_dim": 512,
        "max_position_embeddings": 131_072,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "hidden_size_per_layer_input": 256,
    },
    "other": {},
}
_FAMILIES: Mapping[str, Family] = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",  # text and images; the text half is what runs here
    "gemma3_text": "gemma3_text",
    "gemma4": "gemma4_text",
    "gemma4_text": "gemma4_text",
}
_CHAT_CLASSES = (
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma4ForCausalLM",
    "Gemma4ForConditionalGeneration",
)


def architecture_of(config: Config, name: str, *, force: bool = False) -> Architecture:
    """The decoder that `config` describes; a NotFoundError where it is no Gemma, unless that is forced."""
    family = _family(config, name, force)
    text = config.get("text_config")
    own = {**_DEFAULTS[family], **(text if isinstance(text, Mapping) else config)}
    if family == "other":
        own = {**_usual(own), **{key: value for key, value in own.items() if value is not None}}
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
        tied_head=bool(own.get("tie_word_embeddings", config.get("tie_word_embeddings", family != "other"))),
        gemma4=_gemma4(own, layers, name) if family == "gemma4_text" else None,
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


def _family(config: Config, name: str, force: bool) -> Family:
    kind = config.get("model_type")
    family = _FAMILIES.get(kind) if isinstance(kind, str) else None
    classes = config.get("architectures")
    chats = not isinstance(classes, list) or any(each in _CHAT_CLASSES for each in classes)
    if family and chats:
        return family
    if force:
        return "other"
    what = classes[0] if isinstance(classes, list) and classes else kind
    raise NotFoundError(
        f"{name} is not a Gemma 1 to 4 that chats: its config.json says {what or 'nothing of its kind'}.",
        "See `localgemma models list` for models that run here; --force tries this one all the same.",
    )


def _sliding_layers(own: Config, family: Family, layers: int, name: str) -> int:
    types = own.get("layer_types")
    if isinstance(types, list):
        return sum(each == "sliding_attention" for each in types)
    if family in ("gemma", "other"):
        return 0
    # Gemma 2 alternates whatever its config says; only Gemma 3 reads the pattern (transformers 5.23).
    pattern = 2 if family == "gemma2" else _positive(own, "sliding_window_pattern", name)
    return layers - layers // pattern


def _gemma4(own: Config, layers: int, name: str) -> Gemma4Parts:
    if own.get("enable_moe_block"):
        raise NotFoundError(
            f"{name} is a mixture of experts, and localgemma knows dense models only.",
            "Take one of Gemma 4's dense sizes, such as 4-e4b or 4-31b.",
        )
    sharing, value_is_key = own.get("num_kv_shared_layers") or 0, bool(own.get("attention_k_eq_v"))
    count = sharing if isinstance(sharing, int) else 0
    types, pattern = own.get("layer_types"), _positive(own, "sliding_window_pattern", name)
    if not isinstance(types, list):
        types = ["sliding" if (index + 1) % pattern else "full_attention" for index in range(layers)]
    # transformers 5 writes what is other in full layers per layer, released files once
    layers_own = own.get("per_layer_config")
    per_layer = next(iter(layers_own.values()), None) if isinstance(layers_own, Mapping) else None
    if isinstance(per_layer, Mapping):
        own = {
            **own,
            "global_head_dim": per_layer.get("head_dim", own.get("head_dim")),
            "num_global_key_value_heads": per_layer.get("num_key_value_heads"),
        }
    heads = "num_global_key_value_heads" if value_is_key and own.get("num_global_key_value_heads") else ""
    ffn, ple = _positive(own, "intermediate_size", name), own.get("hidden_size_per_layer_input") or 0
    return Gemma4Parts(
        full_head_dim=_positive(own, "global_head_dim", name),
        full_kv_heads=_positive(own, heads or "num_key_value_heads", name),
        value_is_key=value_is_key,
        sharing_layers=count,
        sharing_full=sum(each == "full_attention" for each in types[layers - count :]),
        sharing_ffn=ffn * (2 if own.get("use_double_wide_mlp") else 1),
        layer_embedding=ple if isinstance(ple, int) else 0,
    )


def _usual(own: Config) -> dict[str, object]:
    """What most decoders that are no Gemma leave out of their config.json."""
    hidden, heads = own.get("hidden_size"), own.get("num_attention_heads")
    head_dim = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None
    return {"num_key_value_heads": heads, "head_dim": head_dim, "max_position_embeddings": 2048}


def _positive(own: Config, key: str, name: str) -> int:
    value = own.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise NotFoundError(
        f"The config.json of {name} is damaged: {key} is {value!r}, not a positive whole number.",
        "Download the model again, or tell its author.",
    )
