"""Which loader takes a checkpoint, and what transformers' own has to be told about its files."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.loading.text_config import DECODER_NAMES, text_config
from localgemma_cli.events import ProgressSink
from localgemma_cli.models.safetensors_file import read_checkpoint
from localgemma_cli.planning.plan import LoadPlan

Loader = Callable[[LoadPlan, Path, ProgressSink], PreTrainedModel]

# What stands beside a quantized weight in bitsandbytes' two forms.
_PARTS = {"nf4": ".weight.quant_state.bitsandbytes__nf4", "int8": ".SCB"}


def own_loader(plan: LoadPlan) -> Loader | None:
    """None: transformers loads it."""
    match plan.model.stored.kind if plan.model.stored else None:
        case "awq":
            from localgemma_cli.backends.pytorch.loading.awq import load_awq

            return load_awq
        case "w8a8":
            from localgemma_cli.backends.pytorch.loading.w8a8 import load_w8a8

            return load_w8a8
        case "gguf":
            from localgemma_cli.backends.pytorch.loading.gguf import load_gguf

            return load_gguf
    return None


def as_the_files_are(plan: LoadPlan, folder: Path) -> dict[str, Any]:
    """A config corrected where it speaks otherwise than the weights beside it, or than the plan.

    A head that the config says is stored, and that is not, is the embedding: every Gemma's is. What a
    bitsandbytes checkpoint was last computed in says nothing about this device.
    """
    config = text_config(folder)
    checkpoint = read_checkpoint(folder)
    if "lm_head.weight" not in checkpoint:
        config.tie_word_embeddings = True
    if plan.quantization in _PARTS and plan.model.stored:
        if plan.quantization == "nf4":
            config.quantization_config["bnb_4bit_compute_dtype"] = plan.dtype
        config.quantization_config["llm_int8_skip_modules"] = _kept_whole(checkpoint, plan.quantization)
    return {"config": config, "key_mapping": DECODER_NAMES}


def _kept_whole(checkpoint: Collection[str], kind: str) -> list[str]:
    """Modules that bitsandbytes left in 16 bits: their weight has nothing beside it that unpacks it.

    The config's own list names them as they were in the model that was quantized, which may have had eyes.
    """
    weights = {name.removesuffix(".weight") for name in checkpoint if name.endswith(".weight")}
    tied = {"lm_head"}  # stored as the embedding, which is never packed
    return sorted(name for name in weights | tied if f"{name}{_PARTS[kind]}" not in checkpoint)
