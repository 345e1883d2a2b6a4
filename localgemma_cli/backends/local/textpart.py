"""The text part of a checkpoint that also sees or hears: the same decoder, under other names.

Gemma 3's released files say `language_model.model.…`, what transformers 5 saves `model.language_model.…`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig, PreTrainedConfig

_RENAMED = {
    r"^(language_model\.model|model\.language_model)\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
Tensor = TypeVar("Tensor")


def text_config(folder: Path) -> tuple[PreTrainedConfig, bool]:
    """The decoder's config, and whether it is a part of a larger model's."""
    whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text = getattr(whole, "text_config", None)
    if text is None:
        return whole, False
    if (stored := getattr(whole, "quantization_config", None)) is not None:
        text.quantization_config = stored
    return text, True


def text_part(folder: Path) -> dict[str, Any]:
    """What `from_pretrained` needs to load the decoder alone; nothing for a checkpoint that is one."""
    config, is_part = text_config(folder)
    return {"config": config, "key_mapping": _RENAMED} if is_part else {}


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the decoder's own names."""
    return {_decoder_name(name): tensor for name, tensor in tensors.items()}


def _decoder_name(name: str) -> str:
    for pattern, replacement in _RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name
