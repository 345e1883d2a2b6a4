"""The text part of a checkpoint that also sees or hears: the same decoder, under other names."""

import re
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from localgemma_cli.models.safetensors_file import NESTED

DECODER_NAMES = {f"^{re.escape(prefix)}": own for prefix, own in NESTED.items()}  # for `key_mapping`


def text_config(folder: Path) -> PreTrainedConfig:
    """The decoder's own config; of a larger model's, its part, with how the whole is stored."""
    whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text = getattr(whole, "text_config", None)
    if text is None:
        return whole
    if (stored := getattr(whole, "quantization_config", None)) is not None:
        text.quantization_config = stored
    return text
