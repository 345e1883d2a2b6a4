"""Which loader takes a checkpoint, and what transformers' own has to be told about its files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from localgemma_cli.backends.local.safetensors_file import read_checkpoint
from localgemma_cli.backends.local.textpart import DECODER_NAMES, text_config
from localgemma_cli.events import ProgressSink
from localgemma_cli.planning.plan import LoadPlan

Loader = Callable[[LoadPlan, Path, ProgressSink], PreTrainedModel]


def own_loader(plan: LoadPlan) -> Loader | None:
    """None: transformers loads it."""
    match plan.model.stored.kind if plan.model.stored else None:
        case "awq":
            from localgemma_cli.backends.local.formats.awq import load_awq

            return load_awq
        case "w8a8":
            from localgemma_cli.backends.local.formats.w8a8 import load_w8a8

            return load_w8a8
        case "gguf":
            from localgemma_cli.backends.local.formats.gguf_model import load_gguf

            return load_gguf
    return None


def as_the_files_are(plan: LoadPlan, folder: Path) -> dict[str, Any]:
    """A config corrected where it speaks otherwise than the weights beside it, or than the plan.

    A head that the config says is stored, and that is not, is the embedding: every Gemma's is. What a
    bitsandbytes checkpoint was last computed in says nothing about this device.
    """
    config = text_config(folder)
    if "lm_head.weight" not in read_checkpoint(folder):
        config.tie_word_embeddings = True
    if plan.quantization == "nf4" and plan.model.stored:
        config.quantization_config["bnb_4bit_compute_dtype"] = plan.dtype
    return {"config": config, "key_mapping": DECODER_NAMES}
