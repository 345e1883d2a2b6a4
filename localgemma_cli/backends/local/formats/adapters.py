"""LoRA and DoRA adapters, by peft, from safetensors only."""

from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedModel

from localgemma_cli.backends.local.formats.extras import needed
from localgemma_cli.errors import NotFoundError

WEIGHTS = "adapter_model.safetensors"


def attach(model: PreTrainedModel, folder: Path, *, merge: bool) -> PreTrainedModel:
    """The model with the adapter in its weights, or beside them; NotFoundError where the two do not match."""
    with needed("peft", "adapters", "Adapters"):
        from peft import PeftConfig, PeftModel
    if not (folder / WEIGHTS).is_file():
        raise NotFoundError(
            f"{folder} holds no {WEIGHTS}, the only form of adapter loaded: pickle files can run code.",
            "Save the adapter again with a recent peft, which writes it.",
        )
    _fit_vocabulary(model, folder / WEIGHTS)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.megatron_config = None  # with one, peft would import the module that it names
        adapted = PeftModel.from_pretrained(model, folder, config=config, local_files_only=True)
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        raise NotFoundError(
            f"The adapter in {folder} does not fit its base: {str(error).strip().splitlines()[0]}",
            "Give the base it was trained on with -m; its adapter_config.json names it.",
        ) from error
    if merge:
        merged: PreTrainedModel = adapted.merge_and_unload()
        return merged
    inner: PreTrainedModel = adapted.base_model.model
    return inner


def _fit_vocabulary(model: PreTrainedModel, weights: Path) -> None:
    """An adapter that was trained with tokens of its own brings a longer embedding."""
    with safe_open(weights, "pt") as file:
        name = next((key for key in file.keys() if key.endswith("embed_tokens.weight")), None)  # noqa: SIM118
        rows = file.get_slice(name).get_shape()[0] if name else None
    if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
