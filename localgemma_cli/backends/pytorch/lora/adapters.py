"""LoRA and DoRA adapters, by peft, from safetensors only: each answers as peft has it, or is refused.

peft gets the matrices that change, named one by one. What an adapter brings whole (embeddings, a head, rows
of new tokens) is put into the model itself.
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

from localgemma_cli.backends.pytorch.lora.full_weights import is_tied, put_in, separate_head
from localgemma_cli.backends.pytorch.lora.rules import Rules
from localgemma_cli.backends.pytorch.lora.tensor_names import Contents, read_adapter, unfit, unusable
from localgemma_cli.documents import failure_reason, read_json_object
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.safetensors_file import EMBEDDING, HEAD
from localgemma_cli.optional_dependencies import require_package

_CONFIG = "adapter_config.json"
_EMBEDDING_MODULE, _HEAD_MODULE = EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight")
# starts of training that leave the base as it was; others change it, and peft does so again
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


def attach_adapter(model: PreTrainedModel, folder: Path, *, merge: bool) -> PreTrainedModel:
    """The model with the adapter in its weights, or beside them; NotFoundError where the two do not match."""
    with require_package("peft", "adapters", "Adapters"):
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL
    contents = read_adapter(folder)
    if contents.changes_nothing:
        raise unusable(folder, "it changes nothing of the language model.")
    config = _read_config(folder)
    rules = Rules(config, USUAL.get(model.config.model_type, ()))
    try:
        _check(model, contents, rules, folder)
        tied = bool(config.get("ensure_weight_tying")) and is_tied(model)
        with _resident(model):
            put_in(model, contents, rules, folder, tied=tied)
            if contents.lora:
                return _with_lora(model, contents, rules, folder, merge=merge, tied=tied)
    except ImportError as error:
        raise NotFoundError(
            f"The adapter in {folder} needs a package that is not installed: {error.name or error}.",
            "Install it, or merge the adapter into its base with peft where it was trained.",
        ) from error
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise unusable(folder, what if what.endswith(".") else f"{what}.") from error
    return model


def _read_config(folder: Path) -> dict[str, object]:
    try:
        return read_json_object(folder / _CONFIG)
    except (OSError, ValueError) as error:
        raise unusable(folder, f"{_CONFIG} cannot be read: {failure_reason(error)}.") from error


def _check(model: PreTrainedModel, contents: Contents, rules: Rules, folder: Path) -> None:
    """That what the config names and what the weights are for are the same, in this base."""
    modules, head = dict(model.named_modules()), model.get_output_embeddings()
    adapted = set()
    for name, module in modules.items():
        trained = contents.name_in_training(name)
        if isinstance(module, nn.Linear | nn.Embedding) and rules.adapts(
            trained, is_linear=isinstance(module, nn.Linear), is_head=module is head
        ):
            adapted.add(name)
    if strangers := sorted((contents.lora.keys() | contents.rows.keys()) - modules.keys()):
        raise unfit(
            folder, f"it changes {len(strangers)} parts that this base has not, {strangers[0]} first."
        )
    tying = bool(rules.config.get("ensure_weight_tying")) and is_tied(model)
    if tying and adapted & {_EMBEDDING_MODULE, _HEAD_MODULE}:
        adapted.add(_EMBEDDING_MODULE)  # the head's is the same, and stored or not
    if extra := sorted(contents.lora.keys() - adapted - ({_HEAD_MODULE} if tying else set())):
        raise unusable(folder, f"it has weights for {extra[0]}, which its {_CONFIG} does not name.")
    if tying:
        adapted.discard(_HEAD_MODULE)
    if missing := sorted(adapted - contents.lora.keys()):
        raise unusable(folder, f"it lacks the weights for {len(missing)} layers, {missing[0]} first.")
    for name, parts in contents.lora.items():
        rank = rules.rank(contents.name_in_training(name)) if not (tying and name == _HEAD_MODULE) else None
        factor = next((parts[each] for each in ("lora_A.weight", "lora_embedding_A") if each in parts), None)
        if rank is not None and (factor is None or factor.shape[:1] != (rank,)):
            raise unusable(folder, f"the weights of {name} are not of rank {rank}, as its {_CONFIG} says.")


def _with_lora(
    model: PreTrainedModel, contents: Contents, rules: Rules, folder: Path, *, merge: bool, tied: bool
) -> PreTrainedModel:
    from peft import PeftModel
    from peft.utils import set_peft_model_state_dict

    lora = dict(contents.lora)
    ends = lora.keys() & {_EMBEDDING_MODULE, _HEAD_MODULE}
    if tied and ends:
        lora = _tied_ends(lora, merge)
    elif merge and ends:
        separate_head(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own habits; what matters is an error here
        adapted = PeftModel(model, _lora_config(contents, rules, lora))
        state = {
            f"base_model.model.{name}.{part}": tensor
            for name, parts in lora.items()
            for part, tensor in parts.items()
        }
        _check_shapes(adapted, state, folder)
        result: Any = set_peft_model_state_dict(adapted, state)
        lost = [name for name in result.missing_keys if "lora_" in name]
        if lost or result.unexpected_keys:
            raise unusable(
                folder, f"peft does not know what to do about {[*lost, *result.unexpected_keys][0]}."
            )
        adapted.eval()
        if merge:
            merged: PreTrainedModel = adapted.merge_and_unload()
            return merged
    inner: PreTrainedModel = adapted.base_model.model
    return inner


def _tied_ends(lora: dict[str, dict[str, torch.Tensor]], merge: bool) -> dict[str, dict[str, torch.Tensor]]:
    """Where head and embedding stay one: merged it is in both; beside them the head has its own."""
    embedding = lora[_EMBEDDING_MODULE]
    rest = {name: parts for name, parts in lora.items() if name != _HEAD_MODULE}
    if merge:
        return rest
    first, second = embedding["lora_embedding_A"], embedding["lora_embedding_B"]
    return {**rest, _HEAD_MODULE: {"lora_A.weight": second.T, "lora_B.weight": first.T}}


def _lora_config(contents: Contents, rules: Rules, lora: Mapping[str, object]) -> Any:
    """peft's config of exactly these modules: every pattern is resolved already."""
    from peft import LoraConfig

    config: Mapping[str, Any] = rules.config
    trained = {name: contents.name_in_training(name) for name in lora}
    start = config.get("init_lora_weights", True)
    return LoraConfig(
        r=config["r"],
        lora_alpha=config.get("lora_alpha", 8),
        target_modules=_one_of(lora),
        rank_pattern=_grouped(trained, rules.rank),
        alpha_pattern=_grouped(trained, rules.alpha),
        use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
        lora_bias=bool(config.get("lora_bias")),
        init_lora_weights=True if start in _PLAIN_STARTS else start,
        loftq_config=config.get("loftq_config") or {},
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def _grouped(trained: Mapping[str, str], value: Callable[[str], float]) -> dict[str, float]:
    groups = defaultdict[float, list[str]](list)
    for name, theirs in trained.items():
        groups[value(theirs)].append(name)
    return {_one_of(names): number for number, names in groups.items()}


def _one_of(names: Mapping[str, object] | list[str]) -> str:
    return "|".join(re.escape(name) for name in names)


def _check_shapes(adapted: nn.Module, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """peft says the same in a report of many lines."""
    places = dict(adapted.named_parameters())
    for name, tensor in state.items():
        stem, _, part = name.rpartition(".lora_")
        first, _, rest = part.partition(".")
        place = places.get(".".join(filter(None, (f"{stem}.lora_{first}", "default", rest))))
        if place is not None and place.shape != tensor.shape:
            what = stem.removeprefix("base_model.model.")
            raise unfit(folder, f"for {what} it has {tuple(tensor.shape)}, not {tuple(place.shape)}.")


@contextmanager
def _resident(model: PreTrainedModel) -> Iterator[None]:
    """With layers that accelerate brings in from the host where they can be changed, then as they were."""
    places = getattr(model, "hf_device_map", None) or {}
    if len(set(places.values())) == 1 or not {"cpu", "disk"} & set(places.values()):
        yield
        return
    if "disk" in places.values():
        raise ValueError(
            "layers of its base wait on disk, where no adapter can be added; take a smaller model"
        )
    from accelerate import dispatch_model  # type: ignore[import-untyped]
    from accelerate.hooks import remove_hook_from_submodules  # type: ignore[import-untyped]

    remove_hook_from_submodules(model)
    yield
    dispatch_model(model, device_map=places, offload_buffers=True, force_hooks=True)
