"""What an adapter's weights are for, by the names that the language model's parts have here.

peft leaves out in silence what finds no place by its name. Here every weight has one, or belongs to a part
that is not loaded at all, such as a vision tower.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.safetensors_file import language_name

WEIGHTS = "adapter_model.safetensors"
_PEFT = "base_model.model."
_WITHIN = ("model.language_model.", "language_model.model.")  # where a larger model keeps its decoder
_ELSEWHERE = ("vision_tower.", "audio_tower.", "multi_modal_projector.", "embed_vision.", "embed_audio.")
_LORA = re.compile(r"([^\n]+?)\.(lora_\w+(?:\.\w+)?)")
_ROWS = ".token_adapter.trainable_tokens_delta"
_WRAPPED = re.compile(r"\.(?:token_adapter\.base_layer|base_layer|modules_to_save(?:\.default)?)\.(?=\w+$)")
_BENEATH = re.compile(r"\.original_module\.(?=\w+$)")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Contents:
    """Tensors by the module or the parameter that they change.

    `lora`: module to the parts of its adapter, as peft calls them. `whole`: new values of parameters.
    `beneath`: those of parameters that `whole` then covers. `rows`: module to new rows of its matrix.
    `within`: where the decoder was in the model that was trained.
    """

    lora: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    beneath: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    within: str = ""

    @property
    def changes_nothing(self) -> bool:
        return not (self.lora or self.whole or self.rows)

    def name_in_training(self, module: str) -> str:
        """What a module of ours was called in the model that was trained, by which a config's patterns go."""
        if self.within and module.startswith("model."):
            return self.within + module.removeprefix("model.")
        old = self.within == "language_model.model." and module.startswith("lm_head")
        return f"language_model.{module}" if old else module


def read_adapter(folder: Path) -> Contents:
    """A NotFoundError where the weights are in no safetensors file, damaged, or not named as by peft."""
    if not (folder / WEIGHTS).is_file():
        raise NotFoundError(
            f"{folder} holds no {WEIGHTS}, the only form of adapter loaded: pickle files can run code.",
            "Save the adapter again with a recent peft, which writes it.",
        )
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise unusable(folder, f"{WEIGHTS} cannot be read ({_first_line(error)}).") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise unusable(folder, f"{name} is of a type that adapters do not have, {tensor.dtype}.")
        if not bool(torch.isfinite(tensor).all()):
            raise unusable(folder, f"{name} holds values that are not finite numbers.")
    return _sorted(tensors, folder)


def _sorted(tensors: Mapping[str, torch.Tensor], folder: Path) -> Contents:
    names = {name: name.removeprefix(_PEFT) for name in tensors}
    within = next((each for each in _WITHIN if any(name.startswith(each) for name in names.values())), "")
    found = Contents(within=within)
    for name, stem in names.items():
        if stem.removeprefix("model.").startswith(_ELSEWHERE):
            continue
        if stem == name:
            raise unusable(folder, f"{name} is not named as peft names an adapter's weights.")
        if not _put(found, language_name(stem), tensors[name]):
            raise unusable(folder, f"{name} is there twice, and differs.")
    return found


def _put(found: Contents, name: str, tensor: torch.Tensor) -> bool:
    """Whether there was no other value for the same."""
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
        f"The adapter in {folder} does not fit its base: {why}",
        "Give the base it was trained on with -m; its adapter_config.json names it.",
    )


def unusable(folder: Path, why: str) -> NotFoundError:
    return NotFoundError(
        f"The adapter in {folder} cannot be used: {why}",
        "Download it again, save it again with a recent peft, or merge it into its base with peft.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
