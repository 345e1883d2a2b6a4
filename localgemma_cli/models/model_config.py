"""A model's config.json, read without transformers."""

from collections.abc import Mapping

from localgemma_cli.documents import format_value, is_number, name_or
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.architecture import Architecture, Family, Gemma4Parts, StoredFormat
from localgemma_cli.models.json_fields import JsonFields
from localgemma_cli.models.unsupported_formats import SUPPORTED_FORMS_HINT

Config = Mapping[str, object]

# Above any real model, and small enough that planning by layer or token stays fast.
_LAYERS, _WIDTH, _HEADS, _HEAD_DIM = 1_000, 1_000_000, 10_000, 16_384
_VOCABULARY, _TOKENS = 10_000_000, 100_000_000
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_LAYER_TYPES = ("sliding_attention", "full_attention")
_NUMBERS: Mapping[str, tuple[float, float]] = {
    "rms_norm_eps": (0, 1),
    "rope_theta": (1e-6, 1e15),
    "rope_local_base_freq": (1e-6, 1e15),
    "query_pre_attn_scalar": (1e-6, 1e9),
    "attn_logit_softcapping": (1e-6, 1e9),
    "final_logit_softcapping": (1e-6, 1e9),
    "attention_dropout": (0, 1),
    "initializer_range": (0, 1e3),
    "num_labels": (0, 1_000_000),  # transformers creates a name for each
}
_TEXTS = ("hidden_act", "hidden_activation", "dtype", "torch_dtype")
_ROPE_DIVISORS = ("factor", "rope_theta", "low_freq_factor", "high_freq_factor")

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
    "gemma3": "gemma3_text",  # text and images; only the text part is loaded
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
    """The decoder that `config` describes; NotFoundError for other models than Gemma, unless forced.

    Also for invalid values, and for values larger than those of any model.
    """
    whole = JsonFields(config, f"config.json of {name}")
    family = _family(config, name, force)
    text = whole.part("text_config") or whole
    values = {**_DEFAULTS[family], **text.values}
    if family == "other":
        values = {**_usual(values), **{key: value for key, value in values.items() if value is not None}}
    own = JsonFields(values, text.where)
    window = own.whole("sliding_window", 1, _TOKENS) if _slides(values, family) else None
    layers = own.whole("num_hidden_layers", 1, _LAYERS)
    tied = whole.flag("tie_word_embeddings", family != "other")
    shape = Architecture(
        family=family,
        layers=layers,
        hidden=own.whole("hidden_size", 1, _WIDTH),
        heads=own.whole("num_attention_heads", 1, _HEADS),
        kv_heads=own.whole("num_key_value_heads", 1, _HEADS),
        head_dim=own.whole("head_dim", 1, _HEAD_DIM),
        ffn=own.whole("intermediate_size", 1, _WIDTH),
        vocabulary=own.whole("vocab_size", 1, _VOCABULARY),
        context_length=own.whole("max_position_embeddings", 1, _TOKENS),
        sliding_window=window,
        sliding_layers=_sliding_layers(own, family, layers) if window else 0,
        softcap=values.get("attn_logit_softcapping") is not None,
        tied_head=own.flag("tie_word_embeddings", tied),
        gemma4=_gemma4(own, layers, name) if family == "gemma4_text" else None,
    )
    _require_sense(own, shape)
    whole.require_ids(_TOKEN_IDS, shape.vocabulary)
    return shape


def _slides(values: Config, family: Family) -> bool:
    window = values.get("sliding_window")
    return bool(window) if family == "other" else window is not None or family == "gemma4_text"


def _require_sense(own: JsonFields, shape: Architecture) -> None:
    """Check values against each other, and those that only the computation uses."""
    if shape.heads % shape.kv_heads:
        raise own.fault("num_attention_heads", f"a multiple of num_key_value_heads, {shape.kv_heads}")
    if shape.head_dim % 2 and shape.family != "other":
        raise own.fault("head_dim", "even, because RoPE rotates pairs")
    for key, (least, most) in _NUMBERS.items():
        own.require_number(key, least, most)
    for key in _TEXTS:
        own.require_text(key)
    for key in ("id2label", "label2id"):
        own.part(key)
    own.require_ids(_TOKEN_IDS, shape.vocabulary)
    for key in ("rope_scaling", "rope_parameters"):
        if (rope := own.part(key)) is not None:
            _require_rope(rope)


def _require_rope(rope: JsonFields) -> None:
    """Check the RoPE settings; each kind of layer may have an object of its own."""
    for key, value in rope.values.items():
        if isinstance(value, Mapping):
            _require_rope(JsonFields(value, f"{rope.where}, {key}"))
        elif isinstance(value, list):
            if not all(is_number(each) for each in value):
                raise rope.fault(key, "a list of numbers")
        elif not isinstance(value, str | bool):
            rope.require_number(key, 0 if key not in _ROPE_DIVISORS else 1e-6, 1e15)


def stored_format_of(config: Config, name: str) -> StoredFormat | None:
    """How a pre-quantized checkpoint is stored; None for an ordinary one."""
    whole = JsonFields(config, f"config.json of {name}")
    part = whole.part("quantization_config") or whole.part("compression_config")
    if _is_mlx(config.get("quantization")) or (part and _is_mlx(part.values)):
        raise NotFoundError(
            f"{name} is quantized for MLX, Apple's library, which localgemma does not support.",
            SUPPORTED_FORMS_HINT,
        )
    if part is None:
        return None
    stored = part.values
    for key in ("llm_int8_skip_modules", "modules_to_not_convert"):
        part.texts(key)
    method = stored.get("quant_method")
    if method == "bitsandbytes" and stored.get("load_in_8bit"):
        return StoredFormat("int8")
    if method == "bitsandbytes" and stored.get("bnb_4bit_quant_type") == "nf4":
        return StoredFormat("nf4", nested=bool(stored.get("bnb_4bit_use_double_quant")))
    if method == "awq" and stored.get("bits") == 4 and str(stored.get("version", "gemm")).lower() == "gemm":
        return StoredFormat(
            "awq", group=part.whole("group_size", 1, _WIDTH) if "group_size" in stored else 128
        )
    if method == "compressed-tensors" and _is_w8a8(stored):
        return StoredFormat("w8a8")
    raise NotFoundError(
        f"{name} is stored in an unsupported quantized form ({name_or(method, 'unnamed')}).",
        SUPPORTED_FORMS_HINT,
    )


def _is_mlx(form: object) -> bool:
    """Whether mlx_lm wrote it: bits and groups without a method."""
    return isinstance(form, Mapping) and {"bits", "group_size"} <= form.keys() and "quant_method" not in form


def _is_w8a8(stored: Config) -> bool:
    """int8 weights with one scale per row, and activations quantized to int8 per token."""
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
    what = name_or(classes[0] if isinstance(classes, list) and classes else kind, "nothing of its kind")
    raise NotFoundError(
        f"{name} is not a Gemma 1 to 4 chat model: its config.json names {what}.",
        "See `localgemma models list` for models that run here; --force tries this one anyway.",
    )


def _sliding_layers(own: JsonFields, family: Family, layers: int) -> int:
    types = _layer_types(own, family, layers)
    if types is not None:
        return types.count("sliding_attention")
    if family in ("gemma", "other"):
        return 0
    # Gemma 2 always alternates; only Gemma 3 reads the pattern (transformers 5.23).
    pattern = 2 if family == "gemma2" else own.whole("sliding_window_pattern", 1, _LAYERS)
    return layers - layers // pattern


def _layer_types(own: JsonFields, family: Family, layers: int) -> list[str] | None:
    """One for each layer, where the config lists them."""
    types = own.texts("layer_types")
    if types is None or family == "other":
        return types
    if len(types) != layers:
        raise own.fault("layer_types", f"as many as num_hidden_layers, {layers}, not {len(types)}")
    if unknown := set(types) - set(_LAYER_TYPES):
        raise own.fault("layer_types", f"{' or '.join(_LAYER_TYPES)} each, not {format_value(min(unknown))}")
    return types


def _gemma4(own: JsonFields, layers: int, name: str) -> Gemma4Parts:
    if own.flag("enable_moe_block"):
        raise NotFoundError(
            f"{name} is a mixture of experts; localgemma supports dense models only.",
            "Use one of Gemma 4's dense sizes, such as 4-e4b or 4-31b.",
        )
    count = own.whole("num_kv_shared_layers", 0, layers) if own.values.get("num_kv_shared_layers") else 0
    value_is_key = own.flag("attention_k_eq_v")
    pattern = own.whole("sliding_window_pattern", 1, _LAYERS)
    types = _layer_types(own, "gemma4_text", layers)
    if types is None:
        types = ["sliding" if (index + 1) % pattern else "full_attention" for index in range(layers)]
    # transformers 5 writes the values of full layers once per layer, released files once in all
    layers_own = own.part("per_layer_config")
    per_layer = next(iter(layers_own.values), None) if layers_own else None
    if layers_own and per_layer is not None and (one := layers_own.part(per_layer)) is not None:
        own = JsonFields(
            {
                **own.values,
                "global_head_dim": one.values.get("head_dim", own.values.get("head_dim")),
                "num_global_key_value_heads": one.values.get("num_key_value_heads"),
            },
            own.where,
        )
    heads = "num_global_key_value_heads" if own.values.get("num_global_key_value_heads") else ""
    ffn = own.whole("intermediate_size", 1, _WIDTH)
    ple = own.values.get("hidden_size_per_layer_input")
    return Gemma4Parts(
        full_head_dim=own.whole("global_head_dim", 1, _HEAD_DIM),
        full_kv_heads=own.whole(heads if heads and value_is_key else "num_key_value_heads", 1, _HEADS),
        value_is_key=value_is_key,
        sharing_layers=count,
        sharing_full=sum(each == "full_attention" for each in types[layers - count :]),
        sharing_ffn=ffn * (2 if own.flag("use_double_wide_mlp") else 1),
        layer_embedding=own.whole("hidden_size_per_layer_input", 0, _WIDTH) if ple is not None else 0,
    )


def _usual(own: Config) -> dict[str, object]:
    """Defaults for decoders other than Gemma, which often omit these values."""
    hidden, heads = own.get("hidden_size"), own.get("num_attention_heads")
    known = isinstance(hidden, int) and isinstance(heads, int) and heads > 0
    head_dim = hidden // heads if known else None  # type: ignore[operator]
    return {"num_key_value_heads": heads, "head_dim": head_dim, "max_position_embeddings": 2048}
