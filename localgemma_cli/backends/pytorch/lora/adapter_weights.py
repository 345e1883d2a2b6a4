"""Reads an adapter's weights and sorts them by the module that each changes, under the decoder's own names.

peft silently ignores weights whose name it does not know. Here such a weight is an error, unless it belongs
to a part that is not loaded, such as a vision tower.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from localgemma_cli.errors import NotFoundError, first_line
from localgemma_cli.models.safetensors_file import language_name

WEIGHTS = "adapter_model.safetensors"
_PEFT = "base_model.model."
_WITHIN = ("model.language_model.", "language_model.model.")  # the decoder's prefix in multimodal models
_ELSEWHERE = ("vision_tower.", "audio_tower.", "multi_modal_projector.", "embed_vision.", "embed_audio.")
_LORA = re.compile(r"([^\n]+?)\.(lora_\w+(?:\.\w+)?)")
_ROWS = ".token_adapter.trainable_tokens_delta"
_WRAPPED = re.compile(r"\.(?:token_adapter\.base_layer|base_layer|modules_to_save(?:\.default)?)\.(?=\w+$)")
_BENEATH = re.compile(r"\.original_module\.(?=\w+$)")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter's tensors, by the module or the parameter that they change.

    `lora`: module -> its matrices, by peft's names. `whole`: new values of parameters. `beneath`: the base
    model's values of those. `rows`: module -> new rows of its matrix. `within`: the decoder's prefix in the
    model that was trained.
    """

    lora: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    beneath: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    within: str = ""

    @property
    def is_empty(self) -> bool:
        return not (self.lora or self.whole or self.rows)

    def name_in_training(self, module: str) -> str:
        """The module's name in the model that was trained, which the patterns in the config match."""
        if self.within and module.startswith("model."):
            return self.within + module.removeprefix("model.")
        old = self.within == "language_model.model." and module.startswith("lm_head")
        return f"language_model.{module}" if old else module


def read_adapter(folder: Path) -> AdapterWeights:
    """Read the adapter's safetensors file.

    NotFoundError where it is missing or damaged, or has names that peft does not use.
    """
    if not (folder / WEIGHTS).is_file():
        raise NotFoundError(
            f"{folder} has no {WEIGHTS}. Other formats are not loaded, because pickle files can run code.",
            "Save the adapter again with a recent version of peft, which writes this file.",
        )
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise unusable(folder, f"{WEIGHTS} cannot be read ({first_line(error)}).") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise unusable(folder, f"{name} has dtype {tensor.dtype}, which adapters do not support.")
        if not bool(torch.isfinite(tensor).all()):
            raise unusable(folder, f"{name} has values that are not finite numbers.")
    return _sort_by_use(tensors, folder)


def _sort_by_use(tensors: Mapping[str, torch.Tensor], folder: Path) -> AdapterWeights:
    names = {name: name.removeprefix(_PEFT) for name in tensors}
    within = next((each for each in _WITHIN if any(name.startswith(each) for name in names.values())), "")
    found = AdapterWeights(within=within)
    for name, stem in names.items():
        if stem.removeprefix("model.").startswith(_ELSEWHERE):
            continue
        if stem == name:
            raise unusable(folder, f"{name} is not a name that peft gives to weights.")
        if not _add(found, language_name(stem), tensors[name]):
            raise unusable(folder, f"{name} occurs twice with different values.")
    return found


def _add(found: AdapterWeights, name: str, tensor: torch.Tensor) -> bool:
    """Add the tensor; False where a different one has the same use."""
    if lora := _LORA.fullmatch(name):
        place, key = found.lora.setdefault(lora[1], {}), lora[2]
    elif name.endswith(_ROWS):
        place, key = found.rows, name.removesuffix(_ROWS)
    elif _BENEATH.search(name):
        place, key = found.beneath, _BENEATH.sub(".", name)
    else:
        place, key = found.whole, _WRAPPED.sub(".", name)
    return torch.equal(place.setdefault(key, tensor), tensor)


def unfit(folder: Path, why: str) -> NotFoundError:
    return NotFoundError(
        f"The adapter in {folder} does not fit this base model: {why}",
        "Use the base model it was trained on, with -m; its adapter_config.json names it.",
    )


def unusable(folder: Path, why: str) -> NotFoundError:
    return NotFoundError(
        f"The adapter in {folder} cannot be used: {why}",
        "Download it again, save it again with a recent peft, or merge it into its base model with peft.",
    )
