"""Estimate the memory a model needs, as a sum over its tensors; all figures in bytes, all functions pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from localgemma_cli.models.architecture import Architecture
from localgemma_cli.types import DTYPE_BYTES, Attention, CacheKind, DeviceKind, Dtype, WeightKind

PREFILL_CHUNK = 512  # tokens; prompts are processed in such pieces, to keep attention scores small

# What a running process holds besides tensors. CUDA: the context with PyTorch's and cuBLAS' kernels (0.4 to
# 0.6 GB on Ampere and later, as users report; not measured here). Metal: assumed to be the same. CPU: 0.4 GB
# resident after torch, transformers and bitsandbytes are imported (measured), plus thread buffers.
RUNTIME_BYTES: Mapping[DeviceKind, int] = {"cuda": 600_000_000, "mps": 600_000_000, "cpu": 500_000_000}
LLAMACPP_BATCH = 256  # tokens; llama.cpp's prompts are processed in such pieces
LLAMACPP_CHECKPOINTS = 3  # copies of the sliding layers' cache at earlier turns, to go back to by /undo
# Python, the tokenizer and llama.cpp itself, without PyTorch (measured with 262,144 tokens).
_LLAMACPP_BYTES = 300_000_000
_COMPACT_BYTES = 97.4 / 64  # per weight; 1 in 370 groups of 64 normal weights is stored unpacked as well
_PIECE_BYTES = 16_000_000  # an AWQ matrix is unpacked in pieces of this size; groups in smaller ones, or not


@dataclass(frozen=True)
class WeightFormat:
    """How the weights are kept in memory.

    `dtype` is that of embeddings, norms and arithmetic, and of the layers if nothing is quantized.
    `nested`: bitsandbytes quantizes the scales of NF4 as well.
    `streamed`: NF4, int4 or int8 as this program makes and keeps it. NF4's scales are in 16 bits, which is
    exact for 16-bit weights. The head is quantized, too; with int4 it is in int8, like the projections to
    values. Embedding rows are read from the checkpoint's file when they are looked up, so almost nothing
    of the embedding is in memory.
    `wide`: NF4 scales are in fp32 on the device, as CUDA's kernel reads them, and not converted at each step.
    `compact`: unquantized bfloat16 weights packed losslessly into 12 bits each.
    `stored_bytes`: of the tensors of a GGUF file.
    `small_head`: with int4 the head is in int4, too.
    """

    dtype: Dtype
    kind: WeightKind = "none"
    nested: bool = False
    streamed: bool = False
    wide: bool = False
    compact: bool = False
    stored_bytes: int = 0
    small_head: bool = False

    @property
    def grouped(self) -> bool:
        """Whether weights are in groups of 32, which the C extension multiplies."""
        return self.streamed and self.kind in ("int4", "int8")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes needed on the device and free there; `host_bytes` and `disk_bytes`: offloaded layers."""

    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    available_bytes: int
    host_bytes: int = 0
    disk_bytes: int = 0
    host_available_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.workspace_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.available_bytes and self.host_bytes <= self.host_available_bytes

    def to_dict(self) -> dict[str, object]:
        return {
            "weights_bytes": self.weights_bytes,
            "kv_cache_bytes": self.kv_cache_bytes,
            "workspace_bytes": self.workspace_bytes,
            "total_bytes": self.total_bytes,
            "available_bytes": self.available_bytes,
            "fits": self.fits,
            "host_bytes": self.host_bytes,
            "disk_bytes": self.disk_bytes,
        }


@dataclass(frozen=True)
class MemoryInputs:
    """All that the memory of a running model depends on."""

    architecture: Architecture
    weights: WeightFormat
    attention: Attention
    cache: CacheKind
    context: int
    device: DeviceKind
    adapter_bytes: int = 0  # of an adapter that is not merged into the weights


def weights_bytes(architecture: Architecture, weights: WeightFormat) -> int:
    """The whole model; a tied head counts once, and embeddings and norms are unquantized unless streamed."""
    if weights.kind == "gguf":
        return weights.stored_bytes
    size = DTYPE_BYTES[weights.dtype]
    last = architecture.hidden + architecture.layer_embedding
    layers = architecture.layers * layer_bytes(architecture, weights) + last * size
    if weights.streamed:
        return layers + head_bytes(architecture, weights)
    embeddings = architecture.embedding_parameters * size
    if weights.compact:  # the head only; the embedding is not packed
        embeddings += head_bytes(architecture, weights) - embedding_bytes(architecture, weights)
    return layers + embeddings


def head_bytes(architecture: Architecture, weights: WeightFormat) -> int:
    if weights.kind == "int4" and not weights.small_head:
        weights = replace(weights, kind="int8")
    return _matrix_bytes(architecture.vocabulary * architecture.hidden, architecture.vocabulary, weights)


def embedding_bytes(architecture: Architecture, weights: WeightFormat) -> int:
    return architecture.vocabulary * architecture.hidden * DTYPE_BYTES[weights.dtype]


def layer_bytes(architecture: Architecture, weights: WeightFormat) -> int:
    if weights.kind == "gguf":  # as if every tensor had the same number of bits per weight
        share = architecture.layer_linear_parameters + architecture.layer_norm_parameters
        return weights.stored_bytes * share // architecture.parameters
    norms = architecture.layer_norm_parameters * DTYPE_BYTES[weights.dtype]
    count, rows = architecture.layer_linear_parameters, architecture.layer_linear_rows
    values = 0
    if weights.kind == "int4":
        value_rows = architecture.kv_heads * architecture.head_dim
        values = _grouped_bytes(value_rows * architecture.hidden, value_rows, 8)
        count, rows = count - value_rows * architecture.hidden, rows - value_rows
    return norms + values + _matrix_bytes(count, rows, weights)


def _matrix_bytes(count: int, rows: int, weights: WeightFormat) -> int:
    """Bytes of one or several matrices with `count` weights in `rows` rows altogether.

    NF4 (bitsandbytes): half a byte per weight, and an fp32 scale per 64; nested, that scale is one byte, with
    an fp32 scale per 256 of those; streamed, it is in 16 bits. int8 (bitsandbytes) and W8A8: one byte, and an
    fp32 scale per row. int4 and streamed int8: see `_grouped_bytes`. AWQ, as PyTorch's kernel reads it: half
    a byte, and per 128 weights a scale and an offset in 16 bits each.
    """
    match weights.kind:
        case "none" if weights.compact:
            return int(count * _COMPACT_BYTES)
        case "none":
            return count * DTYPE_BYTES[weights.dtype]
        case "nf4":
            return _nf4_bytes(count, weights)
        case "int8" if weights.grouped:
            return _grouped_bytes(count, rows, 8)
        case "int8" | "w8a8":
            return count + 4 * rows
        case "int4":
            return _grouped_bytes(count, rows, 4)
        case "awq":
            return count // 2 + count // 128 * 4
        case "gguf":
            raise ValueError("the size of GGUF weights is that of the file")


def _nf4_bytes(count: int, weights: WeightFormat) -> int:
    blocks = -(-count // 64)
    if weights.streamed:
        return count // 2 + (4 if weights.wide else 2) * blocks
    return count // 2 + (blocks + 4 * -(-blocks // 256) if weights.nested else 4 * blocks)


def _grouped_bytes(count: int, rows: int, bits: int) -> int:
    """Per 32 weights a scale of one byte, and per row its fp32 factor; with 4 bits an offset, too."""
    factors = 2 if bits == 4 else 1
    return count * bits // 8 + factors * (count // 32 + 4 * rows)


def kv_cache_bytes(architecture: Architecture, dtype: Dtype, cache: CacheKind, context: int) -> int:
    """Bytes of keys and values of `context` tokens.

    sliding: layers with a sliding window keep only that window. int8: one byte per number, and a 16-bit scale
    per head and token. f16 and q8_0, llama.cpp's: two bytes per number, and one with a 16-bit scale per 32.
    """
    window = context
    if cache == "sliding" and architecture.sliding_window is not None:
        window = min(context, architecture.sliding_window)
    elif cache in ("f16", "q8_0"):
        window = _llamacpp_window(architecture, context)
    kept = (
        group.count
        * group.kv_heads
        * _head_bytes(group.head_dim, dtype, cache)
        * (context if group.full else window)
        for group in architecture.groups
        if group.projected
    )
    return 2 * sum(kept)


def llamacpp_keeps_all(architecture: Architecture, context: int) -> bool:
    """Whether llama.cpp's sliding layers keep every token: where that takes no more than their window."""
    return _llamacpp_window(architecture, context) == context


def _llamacpp_window(architecture: Architecture, context: int) -> int:
    """Tokens that a sliding layer keeps: its window with room for a batch, and the checkpoints."""
    window = architecture.sliding_window or context
    return min(context, window + LLAMACPP_BATCH + LLAMACPP_CHECKPOINTS * window)


def _head_bytes(width: int, dtype: Dtype, cache: CacheKind) -> int:
    match cache:
        case "int8":
            return width + 2
        case "f16":
            return width * 2
        case "q8_0":
            return width // 32 * 34
        case _:
            return width * DTYPE_BYTES[dtype]


def workspace_bytes(work: MemoryInputs) -> int:
    """Peak bytes of one prefill chunk besides weights and cache, the runtime's memory included.

    The sum of the tensors that the reference's modules keep alive at once; tests compare it with the measured
    peak.
    """
    if work.weights.kind == "gguf":
        return _llamacpp_workspace(work)
    architecture, size = work.architecture, DTYPE_BYTES[work.weights.dtype]
    chunk = min(PREFILL_CHUNK, work.context)
    # Logits of one position in fp32, their probabilities, and both sorted with int64 indices for sampling.
    logits = architecture.vocabulary * (4 + 4 + 4 + 8)
    # The residual stream twice, and once in fp32 inside a norm.
    stream = chunk * architecture.hidden * (2 * size + 4)
    largest = max(_attention_bytes(work, chunk), _mlp_bytes(work, chunk))
    return RUNTIME_BYTES[work.device] + logits + stream + largest


def _llamacpp_workspace(work: MemoryInputs) -> int:
    """Peak bytes of a batch in llama.cpp besides weights and cache: float32 activations of one layer.

    The logits of one position and their copies for sampling; the mask in 16 bits.
    """
    shape = work.architecture
    widest = max(3 * shape.widest_ffn, 2 * (shape.heads + 2 * shape.kv_heads) * shape.widest_head_dim)
    batch = LLAMACPP_BATCH * ((widest + 4 * shape.hidden) * 4 + 2 * 2 * work.context)
    runtime = _LLAMACPP_BYTES if work.device == "cpu" else RUNTIME_BYTES[work.device]
    return runtime + batch + shape.vocabulary * (4 + 3 * 12)


def _attention_bytes(work: MemoryInputs, chunk: int) -> int:
    """Queries, keys and values before and after rotation, both masks, and with eager attention the scores.

    transformers repeats keys and values for every query head. localgemma's own attention, used for eager on a
    CPU, repeats nothing, computes the scores of one key head at a time, and unpacks an 8-bit cache layer by
    layer.
    """
    architecture, size = work.architecture, DTYPE_BYTES[work.weights.dtype]
    heads, kv_heads, width = architecture.heads, architecture.kv_heads, architecture.widest_head_dim
    rows = 2 * chunk * width * (heads + 2 * kv_heads) * size
    masks = 2 * chunk * work.context * size
    # Softmax keeps 16-bit scores, their conversion to fp32 and its result; scores in fp32 need two copies.
    scores = chunk * work.context * (size + 4 + 4 if size < 4 else 2 * size)
    if work.attention == "eager" and work.device == "cpu":
        unpacked = 2 * kv_heads * width * work.context * size if work.cache == "int8" else 0
        return rows + unpacked + masks + heads // kv_heads * scores
    repeated = 2 * heads * width * work.context * size if heads > kv_heads else 0
    return rows + repeated + masks + (heads * scores if work.attention == "eager" else 0)


def _mlp_bytes(work: MemoryInputs, chunk: int) -> int:
    """Gate, activated gate, up and their product; if quantized, also one unpacked projection."""
    architecture, size = work.architecture, DTYPE_BYTES[work.weights.dtype]
    ffn = architecture.widest_ffn
    unpacked = 0 if work.weights.kind == "none" else architecture.hidden * ffn * size
    if work.weights.grouped or work.weights.kind == "awq":
        unpacked = min(unpacked, _PIECE_BYTES)
    return 4 * chunk * ffn * size + unpacked


def estimate_memory(work: MemoryInputs, available: int, host_available: int) -> MemoryEstimate:
    """The estimate with every layer on the device; `available` and `host_available` in bytes."""
    return MemoryEstimate(
        weights_bytes=weights_bytes(work.architecture, work.weights) + work.adapter_bytes,
        kv_cache_bytes=kv_cache_bytes(work.architecture, work.weights.dtype, work.cache, work.context),
        workspace_bytes=workspace_bytes(work),
        available_bytes=available,
        host_available_bytes=host_available,
    )
