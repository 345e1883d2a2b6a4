"""Loads a model with quantized weights from its copy in the cache, which is made first where it is missing.

Linear layers become NF4, int4 or int8, as the plan says. So does the head, even where it is tied to the
embedding; where the layers are in int4, it may be in int8. The embedding stays in the checkpoint's own file,
from which only the rows looked up are read. Norms are copied. The whole model is never in memory at once.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.layers.nf4 import EmbeddingTable, nf4_layout
from localgemma_cli.backends.pytorch.loading.assemble import (
    empty_model,
    has_equal_values,
    incomplete_checkpoint,
)
from localgemma_cli.backends.pytorch.loading.calibration import measure_importance
from localgemma_cli.backends.pytorch.loading.convert_4bit import Sink, write_quantized
from localgemma_cli.backends.pytorch.loading.gpu_4bit import attach_on_gpu
from localgemma_cli.backends.pytorch.loading.quantized_cache import CopySpec, identify_source, open_or_create
from localgemma_cli.backends.pytorch.loading.quantized_file import (
    Conversion,
    Kind,
    QuantizedFile,
    QuantizedWeights,
    attach_tensors,
    linear_kind,
    map_stored,
)
from localgemma_cli.backends.pytorch.loading.transformers_config import add_generation_config, text_config
from localgemma_cli.backends.pytorch.weights.gpu_streaming import CudaLink, Link
from localgemma_cli.backends.pytorch.weights.mmap_prefetch import add_paging_hooks, find_spans
from localgemma_cli.errors import DiskSpaceError
from localgemma_cli.events import ProgressSink
from localgemma_cli.models.safetensors_file import (
    EMBEDDING,
    FLOATS,
    HEAD,
    Stored,
    is_tied,
    read_checkpoint,
)
from localgemma_cli.planning.plan import LoadPlan
from localgemma_cli.units import format_bytes


def load_quantized(
    plan: LoadPlan, folder: Path, progress: ProgressSink, link: Link | None = None
) -> PreTrainedModel:
    """Load the model from its quantized copy, which is made first if it is missing.

    NotFoundError where the checkpoint lacks tensors, ValueError where it is damaged.
    `link`: the connection to the plan's device; None where that is the CPU, which computes from the mapped
    file, or a CUDA device.
    """
    if link is None and plan.device == "cuda":
        link = CudaLink(torch.device("cuda", torch.cuda.current_device()))
    dtype: torch.dtype = getattr(torch, plan.dtype)
    checkpoint = read_checkpoint(folder)
    model = empty_model(plan, text_config(folder), dtype)
    add_generation_config(model, folder)
    file = QuantizedFile(tuple(_conversions(plan, model, checkpoint, folder)), dtype)
    weights = QuantizedWeights(file, _open_or_convert(plan, folder, file, checkpoint, progress))
    if link is not None:
        attach_on_gpu(link, plan, model, weights)
    else:
        attach_tensors(model, file.conversions, weights.tensors)
        _page_layers(plan, model, weights)
    table_device = None if link is None or plan.host_embedding else link.device
    _attach_embedding(model, checkpoint[EMBEDDING], dtype, table_device)
    return model.eval()


def _find_kind(plan: LoadPlan) -> Kind:
    match plan.quantization:
        case "int4" | "int8":
            return plan.quantization
    return nf4_layout(plan.device)


def _conversions(
    plan: LoadPlan, model: PreTrainedModel, checkpoint: Mapping[str, Stored], folder: Path
) -> list[Conversion]:
    """One per parameter but the embedding, in the order of the layers."""
    tied = is_tied(model.config.tie_word_embeddings, checkpoint, has_equal_values)
    linears = {f"{name}.weight" for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    parameters = {name: value.shape for name, value in model.named_parameters(remove_duplicate=False)}
    sources = {name: EMBEDDING if tied and name == HEAD else name for name in parameters}
    _require_stored(sources, parameters, checkpoint, folder)
    wanted, found = _find_kind(plan), []
    for name, source in sources.items():
        stored, module = checkpoint[source], name.removesuffix(".weight")
        if name in linears:
            kind = linear_kind(module, stored.shape[0], wanted, plan.small_head)
            found.append(Conversion(module, stored, kind))
        elif name != EMBEDDING:
            found.append(Conversion(name, stored, "copy"))
    return found


def _require_stored(
    sources: Mapping[str, str],
    parameters: Mapping[str, torch.Size],
    checkpoint: Mapping[str, Stored],
    folder: Path,
) -> None:
    """Check that the checkpoint has every parameter, in its shape and in a float dtype."""
    missing = sorted({source for source in sources.values() if source not in checkpoint})
    if missing:
        raise incomplete_checkpoint(folder, missing)
    for name, source in sources.items():
        stored = checkpoint[source]
        if stored.shape != tuple(parameters[name]) or stored.dtype not in FLOATS:
            raise ValueError(f"{source} is {stored.dtype} {stored.shape}, expected {tuple(parameters[name])}")


def _open_or_convert(
    plan: LoadPlan,
    folder: Path,
    file: QuantizedFile,
    checkpoint: Mapping[str, Stored],
    progress: ProgressSink,
) -> mmap.mmap:
    """The file's bytes, mapped from the cache; in memory where the cache cannot hold them."""
    source, inputs = identify_source(plan.model.id, folder)
    kind = _find_kind(plan)
    form = {
        "quantization": plan.quantization,
        "head": "int8" if plan.quantization == "int4" and not plan.small_head else plan.quantization,
        "layout": "groups" if kind in ("int4", "int8") else kind,
        "dtype": plan.dtype,
    }
    spec = CopySpec(plan.model.name, source, form, inputs, file.header, file.size)

    def write(sink: Sink) -> None:
        weighs = any(each.kind == "int4" for each in file.conversions)
        importance = measure_importance(plan, folder, checkpoint, progress) if weighs else {}
        write_quantized(file, sink, progress, importance)

    copy = open_or_create(spec, write, progress)
    if copy is not None:
        return copy
    memory = _allocate(plan, file.size)
    write(memory)
    return memory


def _allocate(plan: LoadPlan, size: int) -> mmap.mmap:
    if plan.resident_layers is not None:
        raise DiskSpaceError(
            f"{plan.model.name} does not fit in memory, and its quantized weights cannot be saved to disk.",
            f"Free {format_bytes(size)} in the cache folder, or set LOCALGEMMA_HOME to a larger disk.",
        )
    return mmap.mmap(-1, size)


def _page_layers(plan: LoadPlan, model: PreTrainedModel, weights: QuantizedWeights) -> None:
    """Where not all layers fit in memory, read each ahead of its turn and release it afterwards."""
    if plan.resident_layers is not None:
        layers = model.model.layers
        spans = find_spans(weights.layout.spans, [f"model.layers.{index}." for index in range(len(layers))])
        add_paging_hooks(layers, spans, weights.buffer, plan.resident_layers)


def _attach_embedding(
    model: PreTrainedModel, stored: Stored, dtype: torch.dtype, device: torch.device | None
) -> None:
    """Map the table in the checkpoint's file and read the rows looked up, or copy it all to `device`."""
    owner = model.model
    table = map_stored(stored)
    if device is not None:
        table = table.to(device, dtype)
    scale = getattr(owner.embed_tokens, "embed_scale", None)
    owner.embed_tokens = EmbeddingTable(table, dtype, scale)
