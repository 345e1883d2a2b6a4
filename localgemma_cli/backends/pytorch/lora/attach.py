"""Attaches a LoRA or DoRA adapter to a model with peft, so that it answers as in peft, or raises an error.

peft gets the low-rank matrices, with every module named. Full weights in the adapter (embeddings, a head,
rows of new tokens) replace those of the model.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.lora.adapter_weights import AdapterWeights, read_adapter, unfit, unusable
from localgemma_cli.backends.pytorch.lora.full_weights import has_tied_head, replace_weights, untie_head
from localgemma_cli.backends.pytorch.lora.rules import Rules
from localgemma_cli.documents import failure_reason, read_json_object
from localgemma_cli.errors import NotFoundError, first_line
from localgemma_cli.models.safetensors_file import EMBEDDING, HEAD
from localgemma_cli.optional_dependencies import require_package

_CONFIG = "adapter_config.json"
_EMBEDDING_MODULE, _HEAD_MODULE = EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight")
# Initializations that do not change the base model. For the others, peft repeats the change when it loads.
_PLAIN_INITS = (None, True, False, "gaussian", "orthogonal", "eva")


def attach_adapter(model: PreTrainedModel, folder: Path, *, merge: bool) -> PreTrainedModel:
    """The model with the adapter merged into its weights, or as additional layers.

    NotFoundError where the adapter cannot be read or does not match the model.
    """
    with require_package("peft", "adapters", "Adapters"):
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL
    weights = read_adapter(folder)
    if weights.is_empty:
        raise unusable(folder, "it has no weights for the language model.")
    config = _read_config(folder)
    rules = Rules(config, USUAL.get(model.config.model_type, ()))
    try:
        _check(model, weights, rules, folder)
        tied = bool(config.get("ensure_weight_tying")) and has_tied_head(model)
        with _resident(model):
            replace_weights(model, weights, rules, folder, tied=tied)
            if weights.lora:
                return _add_lora(model, weights, rules, folder, merge=merge, tied=tied)
    except ImportError as error:
        raise NotFoundError(
            f"The adapter in {folder} needs a package that is not installed: {error.name or error}.",
            "Install it, or merge the adapter into its base model with peft on another machine.",
        ) from error
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        what = first_line(error)
        raise unusable(folder, what if what.endswith(".") else f"{what}.") from error
    return model


def _read_config(folder: Path) -> dict[str, object]:
    try:
        return read_json_object(folder / _CONFIG)
    except (OSError, ValueError) as error:
        raise unusable(folder, f"{_CONFIG} cannot be read: {failure_reason(error)}.") from error


def _check(model: PreTrainedModel, weights: AdapterWeights, rules: Rules, folder: Path) -> None:
    """Check that the config and the weights name the same modules, and that the model has them."""
    modules, head = dict(model.named_modules()), model.get_output_embeddings()
    adapted = set()
    for name, module in modules.items():
        trained = weights.name_in_training(name)
        if isinstance(module, nn.Linear | nn.Embedding) and rules.adapts(
            trained, is_linear=isinstance(module, nn.Linear), is_head=module is head
        ):
            adapted.add(name)
    if unknown := sorted((weights.lora.keys() | weights.rows.keys()) - modules.keys()):
        raise unfit(
            folder, f"it changes {len(unknown)} modules that this model does not have, first {unknown[0]}."
        )
    tying = bool(rules.config.get("ensure_weight_tying")) and has_tied_head(model)
    if tying and adapted & {_EMBEDDING_MODULE, _HEAD_MODULE}:
        adapted.add(_EMBEDDING_MODULE)  # the head shares it, and may be stored too
    if extra := sorted(weights.lora.keys() - adapted - ({_HEAD_MODULE} if tying else set())):
        raise unusable(folder, f"it has weights for {extra[0]}, which its {_CONFIG} does not name.")
    if tying:
        adapted.discard(_HEAD_MODULE)
    if missing := sorted(adapted - weights.lora.keys()):
        raise unusable(folder, f"the weights of {len(missing)} layers are missing, first {missing[0]}.")
    for name, parts in weights.lora.items():
        rank = rules.rank(weights.name_in_training(name)) if not (tying and name == _HEAD_MODULE) else None
        factor = next((parts[each] for each in ("lora_A.weight", "lora_embedding_A") if each in parts), None)
        if rank is not None and (factor is None or factor.shape[:1] != (rank,)):
            raise unusable(
                folder, f"the weights of {name} do not have rank {rank}, which its {_CONFIG} gives."
            )


def _add_lora(
    model: PreTrainedModel, weights: AdapterWeights, rules: Rules, folder: Path, *, merge: bool, tied: bool
) -> PreTrainedModel:
    from peft import PeftModel
    from peft.utils import set_peft_model_state_dict

    lora = dict(weights.lora)
    ends = lora.keys() & {_EMBEDDING_MODULE, _HEAD_MODULE}
    if tied and ends:
        lora = _tied_ends(lora, merge)
    elif merge and ends:
        untie_head(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's; all that matters is checked here
        adapted = PeftModel(model, _lora_config(weights, rules, lora))
        state = {
            f"base_model.model.{name}.{part}": tensor
            for name, parts in lora.items()
            for part, tensor in parts.items()
        }
        _check_shapes(adapted, state, folder)
        result: Any = set_peft_model_state_dict(adapted, state)
        lost = [name for name in result.missing_keys if "lora_" in name]
        if lost or result.unexpected_keys:
            raise unusable(folder, f"peft does not support {[*lost, *result.unexpected_keys][0]}.")
        adapted.eval()
        if merge:
            merged: PreTrainedModel = adapted.merge_and_unload()
            return merged
    inner: PreTrainedModel = adapted.base_model.model
    return inner


def _tied_ends(lora: dict[str, dict[str, torch.Tensor]], merge: bool) -> dict[str, dict[str, torch.Tensor]]:
    """With a tied head: merged, the embedding's matrices change both; otherwise the head needs its own."""
    embedding = lora[_EMBEDDING_MODULE]
    rest = {name: parts for name, parts in lora.items() if name != _HEAD_MODULE}
    if merge:
        return rest
    first, second = embedding["lora_embedding_A"], embedding["lora_embedding_B"]
    return {**rest, _HEAD_MODULE: {"lora_A.weight": second.T, "lora_B.weight": first.T}}


def _lora_config(weights: AdapterWeights, rules: Rules, lora: Mapping[str, object]) -> Any:
    """peft's config for exactly these modules, with every pattern resolved."""
    from peft import LoraConfig

    config: Mapping[str, Any] = rules.config
    trained = {name: weights.name_in_training(name) for name in lora}
    init = config.get("init_lora_weights", True)
    return LoraConfig(
        r=config["r"],
        lora_alpha=config.get("lora_alpha", 8),
        target_modules=_pattern_of(lora),
        rank_pattern=_group_by_value(trained, rules.rank),
        alpha_pattern=_group_by_value(trained, rules.alpha),
        use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
        lora_bias=bool(config.get("lora_bias")),
        init_lora_weights=True if init in _PLAIN_INITS else init,
        loftq_config=config.get("loftq_config") or {},
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def _group_by_value(trained: Mapping[str, str], value: Callable[[str], float]) -> dict[str, float]:
    groups = defaultdict[float, list[str]](list)
    for name, theirs in trained.items():
        groups[value(theirs)].append(name)
    return {_pattern_of(names): number for number, names in groups.items()}


def _pattern_of(names: Mapping[str, object] | list[str]) -> str:
    return "|".join(re.escape(name) for name in names)


def _check_shapes(adapted: nn.Module, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """As peft does, whose message has many lines."""
    parameters = dict(adapted.named_parameters())
    for name, tensor in state.items():
        stem, _, part = name.rpartition(".lora_")
        first, _, rest = part.partition(".")
        old = parameters.get(".".join(filter(None, (f"{stem}.lora_{first}", "default", rest))))
        if old is not None and old.shape != tensor.shape:
            module = stem.removeprefix("base_model.model.")
            raise unfit(folder, f"{module} has shape {tuple(tensor.shape)}, expected {tuple(old.shape)}.")


@contextmanager
def _resident(model: PreTrainedModel) -> Iterator[None]:
    """Remove accelerate's hooks from layers offloaded to the host, and add them again afterwards."""
    places = getattr(model, "hf_device_map", None) or {}
    if len(set(places.values())) == 1 or not {"cpu", "disk"} & set(places.values()):
        yield
        return
    if "disk" in places.values():
        raise ValueError(
            "layers of its base model are offloaded to disk, where adapters do not work; use a smaller model"
        )
    from accelerate import dispatch_model  # type: ignore[import-untyped]
    from accelerate.hooks import remove_hook_from_submodules  # type: ignore[import-untyped]

    remove_hook_from_submodules(model)
    yield
    dispatch_model(model, device_map=places, offload_buffers=True, force_hooks=True)
