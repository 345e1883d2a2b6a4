"""The text part of a checkpoint that also sees or hears: the same decoder, under other names."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

# Gemma 3's released files say the first, what transformers 5 saves the third; patterns for `key_mapping`.
DECODER_NAMES = {
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
}


def text_config(folder: Path) -> PreTrainedConfig:
    """The decoder's own config; of a larger model's, its part, with how the whole is stored."""
    whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text = getattr(whole, "text_config", None)
    if text is None:
        return whole
    if (stored := getattr(whole, "quantization_config", None)) is not None:
        text.quantization_config = stored
    return text
