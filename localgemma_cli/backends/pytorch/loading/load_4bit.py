"""A plan with 4-bit weights to a model: the kept copy mapped, or made first; nothing is ever whole in memory.

Linear layers become NF4 or int4, as the plan says, the head too, even where it is tied: the embedding stays a
table of its own in the checkpoint's file, of which only looked-up rows are read. Norms are copied.
"""

import math
import mmap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from localgemma_cli.backends.pytorch.layers.int4 import row_block
from localgemma_cli.backends.pytorch.layers.nf4 import EmbeddingTable, attach, layout
from localgemma_cli.backends.pytorch.loading.assemble import (
    add_generation_config,
    incomplete,
    same_matrix,
    skeleton,
)
from localgemma_cli.backends.pytorch.loading.convert_4bit import (
    Kind,
    Part,
    all_entries,
    file_size,
    linear_kind,
    write,
)
from localgemma_cli.backends.pytorch.loading.gpu_4bit import Copy, attach_on
from localgemma_cli.backends.pytorch.loading.quantized_cache import Wanted, open_or_make, source_of
from localgemma_cli.backends.pytorch.loading.text_config import text_config
from localgemma_cli.backends.pytorch.weights.gpu_streaming import CudaLink, Link
from localgemma_cli.backends.pytorch.weights.mmap_prefetch import Span, page_through, spans_of
from localgemma_cli.backends.pytorch.weights.quantize_int4 import GROUP
from localgemma_cli.errors import DiskSpaceError, UsageError
from localgemma_cli.events import ProgressSink
from localgemma_cli.models.safetensors_file import (
    EMBEDDING,
    HEAD,
    Entry,
    Stored,
    header,
    is_tied,
    map_file,
    read_checkpoint,
)
from localgemma_cli.planning.plan import LoadPlan
from localgemma_cli.units import format_bytes

_TORCH = {"U8": torch.uint8, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_FLOATS = ("BF16", "F16", "F32")


def load_quantized(
    plan: LoadPlan, folder: Path, progress: ProgressSink, link: Link | None = None
) -> PreTrainedModel:
    """NotFoundError where the checkpoint lacks tensors, ValueError where it is damaged.

    `link` is to the plan's device, where that is none that computes from the mapped file itself.
    """
    if link is None and plan.device == "cuda":
        link = CudaLink(torch.device("cuda", torch.cuda.current_device()))
    dtype: torch.dtype = getattr(torch, plan.dtype)
    checkpoint = read_checkpoint(folder)
    model = skeleton(plan, text_config(folder), dtype)
    add_generation_config(model, folder)
    kind: Kind = "int4" if plan.quantization == "int4" else layout(plan.device)
    parts = _parts(model, checkpoint, folder, kind)
    source, files = source_of(plan.model.id, folder)
    form = {
        "quantization": plan.quantization,
        "head": plan.quantization,
        "layout": _int4_layout() if kind == "int4" else kind,
        "dtype": plan.dtype,
    }
    entries = all_entries(parts, dtype)
    wanted = Wanted(plan.model.name, source, form, files, header(entries), file_size(entries))
    weights = open_or_make(wanted, lambda sink: write(parts, dtype, sink, progress), progress)
    if weights is None:
        weights = _in_memory(plan, wanted.size)
        write(parts, dtype, weights, progress)
    places = _places(entries)
    tensors = {entry.name: _mapped(weights, places[entry.name].first, entry) for entry in entries}
    if link is not None:
        attach_on(link, plan, model, parts, Copy(weights, tensors, places))
    else:
        attach(model, parts, tensors)
        _page(plan, model, weights, places)
    table_device = None if link is None or plan.host_embedding else link.device
    _attach_embedding(model, checkpoint[EMBEDDING], dtype, table_device)
    return model.eval()


def _int4_layout() -> str:
    """By the processor's kernel; a UsageError where it is one that is not known here."""
    block = row_block()
    if block is None:
        raise UsageError(
            "This PyTorch has no int4 product for this processor that is known here.",
            "Take --quantization nf4, or --preset exact.",
        )
    return f"{block} rows, groups of {GROUP}"


def _page(plan: LoadPlan, model: PreTrainedModel, weights: mmap.mmap, places: Mapping[str, Span]) -> None:
    if plan.resident_layers is not None:
        names = [f"model.layers.{index}." for index in range(len(model.model.layers))]
        page_through(model.model.layers, spans_of(places, names), weights, plan.resident_layers)


def _in_memory(plan: LoadPlan, size: int) -> mmap.mmap:
    if plan.resident_layers is not None:
        raise DiskSpaceError(
            f"{plan.model.name} does not fit in memory, and its 4-bit weights cannot be kept on disk.",
            f"Free {format_bytes(size)} in the cache folder, or set LOCALGEMMA_HOME to a larger disk.",
        )
    return mmap.mmap(-1, size)


def _parts(model: PreTrainedModel, checkpoint: Mapping[str, Stored], folder: Path, kind: Kind) -> list[Part]:
    """What to make of each parameter, in the order of the layers; the embedding is not among them."""
    tied = is_tied(model.config.tie_word_embeddings, checkpoint, same_matrix)
    linears = {f"{name}.weight" for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    parameters = {name: value.shape for name, value in model.named_parameters(remove_duplicate=False)}
    names = {name: EMBEDDING if tied and name == HEAD else name for name in parameters}
    _require(names, parameters, checkpoint, folder)
    return [
        Part(name.removesuffix(".weight"), checkpoint[source], linear_kind(parameters[name], kind))
        if name in linears
        else Part(name, checkpoint[source], "copy")
        for name, source in names.items()
        if name != EMBEDDING
    ]


def _require(
    names: Mapping[str, str],
    parameters: Mapping[str, torch.Size],
    checkpoint: Mapping[str, Stored],
    folder: Path,
) -> None:
    """Every parameter is in the checkpoint, in its shape and in a type that can be read."""
    missing = sorted({source for source in names.values() if source not in checkpoint})
    if missing:
        raise incomplete(folder, missing)
    for name, source in names.items():
        stored = checkpoint[source]
        if stored.shape != tuple(parameters[name]) or stored.dtype not in _FLOATS:
            raise ValueError(f"{source} is {stored.dtype} {stored.shape}, not {tuple(parameters[name])}")


def _places(entries: Sequence[Entry]) -> dict[str, Span]:
    """Where in the copy each tensor lies."""
    places, offset = {}, len(header(entries))
    for entry in entries:
        places[entry.name] = Span(offset, offset + entry.size)
        offset += entry.size
    return places


def _attach_embedding(
    model: PreTrainedModel, stored: Stored, dtype: torch.dtype, device: torch.device | None
) -> None:
    """The checkpoint's own file is mapped: rows are read as they are looked up, or all go to `device`."""
    owner = model.model
    table = _mapped(map_file(stored.file), stored.offset, stored)
    if device is not None:
        table = table.to(device, dtype)
    scale = getattr(owner.embed_tokens, "embed_scale", None)
    owner.embed_tokens = EmbeddingTable(table, dtype, scale)


def _mapped(buffer: mmap.mmap, offset: int, what: Entry | Stored) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # it cannot be written to, and nobody does
        flat = torch.frombuffer(buffer, dtype=_TORCH[what.dtype], count=math.prod(what.shape), offset=offset)
    return flat.view(what.shape)
