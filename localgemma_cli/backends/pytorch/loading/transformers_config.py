"""transformers' config objects, read from a model's folder."""

import re
from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from localgemma_cli.models.safetensors_file import NESTED

# For `from_pretrained(key_mapping=…)`: a multimodal checkpoint has the same decoder under longer names.
DECODER_NAMES = {f"^{re.escape(prefix)}": own for prefix, own in NESTED.items()}


def text_config(folder: Path) -> PreTrainedConfig:
    """The decoder's config; of a multimodal model, its text part and the quantization of the whole."""
    whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text = getattr(whole, "text_config", None)
    if text is None:
        return whole
    if (stored := getattr(whole, "quantization_config", None)) is not None:
        text.quantization_config = stored
    return text


def unquantized_config(folder: Path) -> PreTrainedConfig:
    """`text_config` without the entries that make transformers quantize the model."""
    config = text_config(folder)
    for key in ("quantization_config", "compression_config"):
        if hasattr(config, key):
            delattr(config, key)
    return config


def add_generation_config(model: PreTrainedModel, folder: Path) -> None:
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
