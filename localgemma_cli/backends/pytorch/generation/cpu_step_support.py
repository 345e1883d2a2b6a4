"""Which models the fast CPU step can run: known by their classes, and compared with transformers once."""

import functools
import logging
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from localgemma_cli.backends.pytorch.generation.cpu_step import CpuStep
from localgemma_cli.backends.pytorch.generation.cuda_graph import Step
from localgemma_cli.backends.pytorch.generation.kv_cache import KVCache
from localgemma_cli.backends.pytorch.kernels.library import first_correct, variants
from localgemma_cli.backends.pytorch.kernels.step import LANES, StepFunctions, bind_step
from localgemma_cli.backends.pytorch.layers.attention import NAME as GROUPED
from localgemma_cli.backends.pytorch.layers.attention import register
from localgemma_cli.errors import first_line

_FAMILIES = {"gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3"}  # model type: prefix of classes
_CONSTANT_ROTATIONS = {"default", "linear"}  # they do not depend on the length of the text
_log = logging.getLogger(__name__)


def make_cpu_step(model: PreTrainedModel, plain: Step) -> Step:
    """Return the fast step for a model that it can run, else `plain`."""
    family: Any = type(model)
    try:
        if reason := why_not(model):
            _log.info("localgemma: no fast decoding step for this model: %s", reason)
        elif functions := find_step_functions(family):
            return CpuStep(model, functions, plain)
    except Exception as error:
        _log.warning(
            "localgemma: cannot prepare the fast decoding step, continuing without it (slower): %s",
            first_line(error),
        )
    return plain


def why_not(model: PreTrainedModel) -> str | None:
    """Return why the fast step cannot run this model; None if it can.

    What is computed between the linear layers must be the family's own code, unchanged. The linear layers
    can be any.
    """
    config, source = model.config, sys.modules[type(model).__module__]
    prefix = _FAMILIES.get(config.model_type)
    if prefix is None or type(model) is not getattr(source, f"{prefix}ForCausalLM", None):
        return f"its architecture is {type(model).__name__}"
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return f"it computes in {model.dtype} on {model.device}"
    if config._attn_implementation != GROUPED:
        return f"its attention is {config._attn_implementation}"
    if any(map(_is_changed, model.modules())):
        return "one of its modules has a hook"
    if not _has_known_modules(model, source, prefix) or getattr(config, "use_bidirectional_attention", False):
        return "its layers are not those of its family"
    if config.hidden_size % LANES or config.intermediate_size % LANES or config.head_dim % (2 * LANES):
        return f"its rows are not multiples of {LANES}"
    return None


def _is_changed(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _has_known_modules(model: PreTrainedModel, source: Any, prefix: str) -> bool:
    parts = ("DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
    layer, attention, mlp, norm, rotation = (getattr(source, f"{prefix}{part}", None) for part in parts)
    decoder: Any = model.model
    kinds = decoder.rotary_emb.rope_type
    return (
        all(
            (type(each), type(each.self_attn), type(each.mlp)) == (layer, attention, mlp)
            and type(each.mlp.act_fn).__name__ == "GELUTanh"
            for each in decoder.layers
        )
        and all(
            type(each) is norm and each.weight.dtype == torch.bfloat16
            for each in model.modules()
            if type(each).__name__.endswith("RMSNorm")
        )
        and type(decoder.rotary_emb) is rotation
        and _CONSTANT_ROTATIONS.issuperset(kinds.values() if isinstance(kinds, dict) else (kinds,))
    )


@functools.cache
def find_step_functions(family: Any) -> StepFunctions | None:
    """Return the C functions with which a small model of the class `family` agrees with transformers."""
    return first_correct(map(bind_step, variants()), lambda each: agrees_with_transformers(family, each))


@torch.inference_mode()
def agrees_with_transformers(family: Any, functions: StepFunctions) -> bool:
    """Compare steps, of one row and of three, of a small random model past its window, over both caches."""
    model = _small_model(family)
    plain = functools.partial(_forward, model)
    for kind in ("full", "int8"):
        logits: list[list[Tensor]] = []
        for step in (CpuStep(model, functions, plain), plain):
            cache = KVCache(model.config, kind, 64).cache
            _forward(model, torch.arange(7)[None], cache)
            logits.append([step(torch.tensor([tokens]), cache) for tokens in ([7], [8], [9, 10, 11])])
        if not all(map(_is_close, *logits)):
            return False
    return True


def _forward(model: PreTrainedModel, tokens: Tensor, cache: Cache) -> Tensor:
    logits: Tensor = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
    return logits[0].float()


def _is_close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() < 0.02 * other.norm())


def _small_model(family: Any) -> PreTrainedModel:
    sizes = {
        "vocab_size": 32,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 4,
    }
    config = family.config_class(**sizes, initializer_range=0.2)
    if hasattr(config, "layer_types"):
        config.layer_types = ["sliding_attention", "full_attention"]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = family._from_config(config, attn_implementation=register(), dtype=torch.bfloat16).eval()
        for parameter in model.parameters():
            parameter.data += torch.rand_like(parameter) * (parameter.ndim == 1)  # norms begin at zero
    small: PreTrainedModel = model
    return small
