"""Loads a model as the plan says, from its folder: picks the loader, adds the adapter, tunes linear layers.

Weights are read from safetensors and GGUF files only, and code in a repository is never run.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.layers.cpu_linear import tune_linears
from localgemma_cli.backends.pytorch.loading.completeness import require_complete
from localgemma_cli.backends.pytorch.loading.mapped import can_map, load_mapped
from localgemma_cli.errors import DoesNotFitError, NotFoundError
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.load_errors import loading
from localgemma_cli.planning.plan import LoadPlan

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def load_model(
    plan: LoadPlan, folder: Path, progress: ProgressSink, adapter: Path | None = None
) -> PreTrainedModel:
    """Load the model in `folder`, and the adapter in the folder `adapter`, ready to compute.

    NotFoundError where the checkpoint is damaged or incomplete, DoesNotFitError where memory runs out.
    """
    if adapter is None and all((folder / name).is_file() for name in _ADAPTER_FILES):
        raise NotFoundError(
            f"{folder} holds both a whole model and an adapter.",
            f"To use both: --adapter {folder}. For the model alone, move adapter_config.json elsewhere.",
        )
    progress(LoadProgress("preparing to load"))
    with loading("model", folder):
        if folder.is_dir():
            require_complete(folder, plan.model.name)
        try:
            model = _load_weights(plan, folder, progress)
            if plan.streamed:  # its linear layers are tuned already, and no adapter fits them
                return model
            if adapter is not None:
                model = _add_adapter(plan, model, adapter, progress)
            if plan.processes == 1:
                tune_linears(model, plan.compact, progress)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise out_of_memory(plan) from error
    return model.eval()


def out_of_memory(plan: LoadPlan) -> DoesNotFitError:
    return DoesNotFitError(
        f"Out of memory: {plan.model.name} with preset {plan.preset} on {plan.device}.",
        "Close other programs, or use --preset memory, a smaller --context or a smaller model.",
    )


def _load_weights(plan: LoadPlan, folder: Path, progress: ProgressSink) -> PreTrainedModel:
    """By the loader for the plan's 4-bit copy, for the checkpoint's own format or its plain weights, or by
    transformers.
    """
    if plan.streamed:
        from localgemma_cli.backends.pytorch.loading.load_4bit import load_quantized

        return load_quantized(plan, folder, progress)
    match plan.model.stored.kind if plan.model.stored else None:
        case "awq":
            from localgemma_cli.backends.pytorch.loading.awq import load_awq

            return load_awq(plan, folder, progress)
        case "w8a8":
            from localgemma_cli.backends.pytorch.loading.w8a8 import load_w8a8

            return load_w8a8(plan, folder, progress)
        case "gguf":
            from localgemma_cli.backends.pytorch.loading.gguf import load_gguf

            return load_gguf(plan, folder, progress)
    if can_map(plan) and (mapped := load_mapped(plan, folder, progress)) is not None:
        return mapped
    from localgemma_cli.backends.pytorch.loading.pretrained import load_pretrained

    return load_pretrained(plan, folder, progress)


def _add_adapter(
    plan: LoadPlan, model: PreTrainedModel, adapter: Path, progress: ProgressSink
) -> PreTrainedModel:
    from localgemma_cli.backends.pytorch.lora.attach import attach_adapter

    progress(LoadProgress("merging the adapter" if plan.merges_adapter else "attaching the adapter"))
    return attach_adapter(model, adapter, merge=plan.merges_adapter)
