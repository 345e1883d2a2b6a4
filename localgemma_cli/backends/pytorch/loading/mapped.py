"""Maps a checkpoint's weights as they are in its files: for an unquantized model on a CPU.

transformers' `from_pretrained` maps them too, but takes half a second longer: it makes the whole model on the
device "meta", for which torch imports sympy.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.loading.assemble import empty_model
from localgemma_cli.backends.pytorch.loading.transformers_config import add_generation_config, text_config
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.safetensors_file import FLOATS, HEAD, Stored, language_name, read_checkpoint
from localgemma_cli.planning.plan import LoadPlan


def can_map(plan: LoadPlan) -> bool:
    """Whether the plan has all weights on the CPU, in one process, unquantized."""
    whole = plan.processes == 1 and not plan.shares and plan.resident_layers is None
    return whole and plan.device == "cpu" and plan.quantization == "none" and plan.model.stored is None


def load_mapped(plan: LoadPlan, folder: Path, progress: ProgressSink) -> PreTrainedModel | None:
    """Load the model in `folder`; None where its tensors' names or shapes are not the model's."""
    checkpoint = read_checkpoint(folder)
    config = text_config(folder)
    if HEAD not in checkpoint:
        config.tie_word_embeddings = True  # as in every Gemma
    elif config.tie_word_embeddings:
        return None  # transformers compares the head with the embedding
    dtype: torch.dtype = getattr(torch, plan.dtype)
    model = empty_model(plan, config, dtype)
    wanted = dict(model.state_dict())
    if config.tie_word_embeddings:
        del wanted[HEAD]
    if not _has_all(checkpoint, wanted):
        return None
    tensors = _map_tensors({checkpoint[name].file for name in wanted}, wanted.keys())
    for done, (name, tensor) in enumerate(tensors.items()):
        progress(LoadProgress("loading", done, len(tensors), unit="tensors"))
        tensors[name] = tensor.to(dtype)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    add_generation_config(model, folder)
    return model


def _has_all(checkpoint: Mapping[str, Stored], wanted: Mapping[str, torch.Tensor]) -> bool:
    return all(
        name in checkpoint
        and checkpoint[name].dtype in FLOATS
        and checkpoint[name].shape == tensor.shape
        and tensor.is_floating_point()
        for name, tensor in wanted.items()
    )


def _map_tensors(files: Collection[Path], names: Collection[str]) -> dict[str, torch.Tensor]:
    """The tensors of those names, in the memory of their files."""
    found = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for stored in file.keys():  # noqa: SIM118, not a dictionary
                if (name := language_name(stored)) in names:
                    found[name] = file.get_tensor(stored)
    return found
