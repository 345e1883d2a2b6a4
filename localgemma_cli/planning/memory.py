"""How many bytes a model takes, as a sum over its tensors; all figures in bytes, all functions pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from localgemma_cli.models.architecture import Architecture
from localgemma_cli.types import DTYPE_BYTES, Attention, CacheKind, DeviceKind, Dtype, WeightKind

PREFILL_CHUNK = 512  # tokens; a prompt is read in pieces of this, so that attention scores stay small

# What a running process holds besides tensors. CUDA: the context with PyTorch's and cuBLAS' kernels (0.4 to
# 0.6 GB on Ampere and later as users report it; not measured here). Metal: taken for the same. CPU: 0.4 GB
# resident once torch, transformers and bitsandbytes are imported (measured), and some for thread scratch.
RUNTIME_BYTES: Mapping[DeviceKind, int] = {"cuda": 600_000_000, "mps": 600_000_000, "cpu": 500_000_000}
_COMPACT_BYTES = 97.4 / 64  # of normal numbers, of which one group of 64 in 370 is kept as it is besides
_PIECE_BYTES = 16_000_000  # of an int4 or AWQ matrix, unpacked; as int4.py does it


@dataclass(frozen=True)
class WeightFormat:
    """`dtype` is that of embeddings, norms and arithmetic, and of the layers where nothing is quantized.

    `streamed`: NF4 or int4 as this program makes and keeps it. Scales are in 16 bits, which holds NF4's of
    16-bit weights exactly; the head is quantized like a layer; and rows of the embedding are read from the
    checkpoint's own file as they are looked up, so that next to nothing of it is in memory.
    `wide`: NF4's are in fp32 on the device, as CUDA's kernel reads them, and not made so at each step.
    `compact`: nothing is quantized, and bfloat16 weights are in 12 bits each without loss; see bfloat16.c.
    """

    dtype: Dtype
    kind: WeightKind = "none"
    nested: bool = False
    streamed: bool = False
    wide: bool = False
    compact: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Device bytes against the device's free bytes; `host_bytes` and `disk_bytes` hold offloaded layers."""

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
class Load:
    """One way to run a model: all that its memory depends on."""

    architecture: Architecture
    weights: WeightFormat
    attention: Attention
    cache: CacheKind
    context: int
    device: DeviceKind
    adapter_bytes: int = 0  # of an adapter that is kept beside the weights


def weights_bytes(architecture: Architecture, weights: WeightFormat) -> int:
    """The whole model; a tied head counts once, embeddings and norms stay unquantized unless streamed."""
    size = DTYPE_BYTES[weights.dtype]
    last = architecture.hidden + architecture.layer_embedding
    layers = architecture.layers * layer_bytes(architecture, weights) + last * size
    if weights.streamed:
        return layers + head_bytes(architecture, weights)
    embeddings = architecture.embedding_parameters * size
    if weights.compact:  # the head only: an embedding stays as it is in the file
        embeddings += head_bytes(architecture, weights) - embedding_bytes(architecture, weights)
    return layers + embeddings


def head_bytes(architecture: Architecture, weights: WeightFormat) -> int:
    return _matrix_bytes(architecture.vocabulary * architecture.hidden, architecture.vocabulary, weights)


def embedding_bytes(architecture: Architecture, weights: WeightFormat) -> int:
    return architecture.vocabulary * architecture.hidden * DTYPE_BYTES[weights.dtype]


def layer_bytes(architecture: Architecture, weights: WeightFormat) -> int:
    norms = architecture.layer_norm_parameters * DTYPE_BYTES[weights.dtype]
    return norms + _matrix_bytes(
        architecture.layer_linear_parameters, architecture.layer_linear_rows, weights
    )


def _matrix_bytes(count: int, rows: int, weights: WeightFormat) -> int:
    """Of one or several matrices: `count` weights in `rows` rows.

    NF4 (bitsandbytes): half a byte, and an fp32 maximum per 64; nested, that maximum is one byte, with an
    fp32 one per 256 of those; streamed, it is in 16 bits. int8 and W8A8: one byte, and an fp32 scale per
    row. int4 and AWQ, as PyTorch's kernels take them: half a byte, and per 64 or 128 a scale and an offset in
    16 bits each. Compact: bfloat16.c.
    """
    match weights.kind:
        case "none" if weights.compact:
            return int(count * _COMPACT_BYTES)
        case "none":
            return count * DTYPE_BYTES[weights.dtype]
        case "nf4":
            return _nf4_bytes(count, weights)
        case "int8" | "w8a8":
            return count + 4 * rows
        case "int4":
            return _int4_bytes(count, 64)
        case "awq":
            return _int4_bytes(count, 128)
        case "gguf":
            raise ValueError("a GGUF file is unpacked as it is loaded")


def _nf4_bytes(count: int, weights: WeightFormat) -> int:
    blocks = -(-count // 64)
    if weights.streamed:
        return count // 2 + (4 if weights.wide else 2) * blocks
    return count // 2 + (blocks + 4 * -(-blocks // 256) if weights.nested else 4 * blocks)


def _int4_bytes(count: int, group: int) -> int:
    return count // 2 + count // group * 4


def kv_cache_bytes(architecture: Architecture, dtype: Dtype, cache: CacheKind, context: int) -> int:
    """Keys and values of `context` tokens; with a sliding cache, layers that slide keep their window only.

    int8: one byte, and for each head a scale in 16 bits.
    """
    window = context
    if cache == "sliding" and architecture.sliding_window is not None:
        window = min(context, architecture.sliding_window)
    kept = (
        group.count
        * group.kv_heads
        * (group.head_dim + 2 if cache == "int8" else group.head_dim * DTYPE_BYTES[dtype])
        * (context if group.full else window)
        for group in architecture.groups
        if group.projected
    )
    return 2 * sum(kept)


def workspace_bytes(load: Load) -> int:
    """The most that one chunk of prefill needs besides weights and cache, with the runtime's own share.

    The sum of what the reference's modules keep alive at once; tests hold it against their true peak.
    """
    architecture, size = load.architecture, DTYPE_BYTES[load.weights.dtype]
    chunk = min(PREFILL_CHUNK, load.context)
    # Logits of one position in fp32, their probabilities, and both sorted with int64 indices to sample from.
    logits = architecture.vocabulary * (4 + 4 + 4 + 8)
    # The residual stream twice, and in fp32 inside a norm.
    stream = chunk * architecture.hidden * (2 * size + 4)
    largest = max(_attention_bytes(load, chunk), _mlp_bytes(load, chunk))
    return RUNTIME_BYTES[load.device] + logits + stream + largest


def _attention_bytes(load: Load, chunk: int) -> int:
    """Queries, keys and values before and after rotation, both masks, and with eager attention the scores.

    transformers repeats keys and values for every query head. Our own attention, which is eager on a CPU,
    repeats nothing and scores one key head at a time; what is kept in 8 bits it unpacks layer by layer.
    """
    architecture, size = load.architecture, DTYPE_BYTES[load.weights.dtype]
    heads, kv_heads, width = architecture.heads, architecture.kv_heads, architecture.widest_head_dim
    rows = 2 * chunk * width * (heads + 2 * kv_heads) * size
    masks = 2 * chunk * load.context * size
    # Softmax holds 16-bit scores, their conversion to fp32 and its result; scores in fp32 need two copies.
    scores = chunk * load.context * (size + 4 + 4 if size < 4 else 2 * size)
    if load.attention == "eager" and load.device == "cpu":
        unpacked = 2 * kv_heads * width * load.context * size if load.cache == "int8" else 0
        return rows + unpacked + masks + heads // kv_heads * scores
    repeated = 2 * heads * width * load.context * size if heads > kv_heads else 0
    return rows + repeated + masks + (heads * scores if load.attention == "eager" else 0)


def _mlp_bytes(load: Load, chunk: int) -> int:
    """Gate, activated gate, up and their product; quantized, also the unpacked matrix of one projection."""
    architecture, size = load.architecture, DTYPE_BYTES[load.weights.dtype]
    ffn = architecture.widest_ffn
    unpacked = 0 if load.weights.kind == "none" else architecture.hidden * ffn * size
    if load.weights.kind in ("int4", "awq"):
        unpacked = min(unpacked, _PIECE_BYTES)
    return 4 * chunk * ffn * size + unpacked


def resident(load: Load, available: int, host_available: int) -> MemoryEstimate:
    """The estimate with every layer on the device."""
    return MemoryEstimate(
        weights_bytes=weights_bytes(load.architecture, load.weights) + load.adapter_bytes,
        kv_cache_bytes=kv_cache_bytes(load.architecture, load.weights.dtype, load.cache, load.context),
        workspace_bytes=workspace_bytes(load),
        available_bytes=available,
        host_available_bytes=host_available,
    )
