"""The shape of a Gemma decoder, and the format of its stored weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from localgemma_cli.types import StoredQuantization

Family = Literal["gemma", "gemma2", "gemma3_text", "gemma4_text", "other"]

FAMILY_NAMES: Mapping[Family, str] = {
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "gemma4_text": "Gemma 4",
    "other": "Not a Gemma",
}
_NORMED_QUERIES = ("gemma3_text", "gemma4_text")


@dataclass(frozen=True)
class Gemma4Parts:
    """The further sizes of Gemma 4 (modeling_gemma4.py), whose full layers differ in shape from sliding ones.

    `value_is_key`: full layers have no value projection. The last `sharing_layers`, `sharing_full` of them
    full ones, have no keys and values of their own, and an MLP of width `sharing_ffn`.
    `layer_embedding`: width of the per-layer input embedding; 0 without one.
    """

    full_head_dim: int
    full_kv_heads: int
    value_is_key: bool
    sharing_layers: int
    sharing_full: int
    sharing_ffn: int
    layer_embedding: int


@dataclass(frozen=True)
class Layers:
    """`count` layers of one shape; `projected`: the number of projections for keys and values."""

    count: int
    full: bool
    head_dim: int
    kv_heads: int
    projected: Literal[0, 1, 2]
    ffn: int


@dataclass(frozen=True)
class Architecture:
    """The shape of a Gemma decoder: everything that memory and speed depend on."""

    family: Family
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    context_length: int
    sliding_window: int | None
    sliding_layers: int
    softcap: bool
    tied_head: bool
    gemma4: Gemma4Parts | None = None

    @property
    def groups(self) -> tuple[Layers, ...]:
        """The layers by shape; two groups, full and sliding, for all but Gemma 4."""
        full, more = self.layers - self.sliding_layers, self.gemma4
        if more is None:
            return (
                Layers(full, True, self.head_dim, self.kv_heads, 2, self.ffn),
                Layers(self.sliding_layers, False, self.head_dim, self.kv_heads, 2, self.ffn),
            )
        wide, narrow = (more.full_head_dim, more.full_kv_heads), (self.head_dim, self.kv_heads)
        sharing = more.sharing_layers - more.sharing_full
        return (
            Layers(full - more.sharing_full, True, *wide, 1 if more.value_is_key else 2, self.ffn),
            Layers(self.sliding_layers - sharing, False, *narrow, 2, self.ffn),
            Layers(more.sharing_full, True, *wide, 0, more.sharing_ffn),
            Layers(sharing, False, *narrow, 0, more.sharing_ffn),
        )

    @property
    def layer_embedding(self) -> int:
        return self.gemma4.layer_embedding if self.gemma4 else 0

    @property
    def widest_head_dim(self) -> int:
        return max(group.head_dim for group in self.groups)

    @property
    def widest_ffn(self) -> int:
        return max(group.ffn for group in self.groups if group.count)

    @property
    def embedding_parameters(self) -> int:
        """The embeddings, and the output head unless it is tied."""
        own = self.vocabulary * self.hidden * (1 if self.tied_head else 2)
        return own + self.vocabulary * self.layers * self.layer_embedding

    @property
    def linear_parameters(self) -> int:
        """The quantizable weights: the projections of attention and MLP in every layer."""
        return sum(group.count * self._linear_in(group) for group in self.groups) + (
            3 * self.layers * self.hidden * self.layer_embedding
        )

    @property
    def layer_linear_parameters(self) -> int:
        """The mean per layer, rounded up."""
        return -(-self.linear_parameters // self.layers)

    @property
    def linear_rows(self) -> int:
        """The output features of all projections; int8 keeps one scale for each."""
        return sum(group.count * self._rows_in(group) for group in self.groups) + self.layers * (
            self.hidden + 2 * self.layer_embedding if self.layer_embedding else 0
        )

    @property
    def layer_linear_rows(self) -> int:
        return -(-self.linear_rows // self.layers)

    @property
    def layer_norm_parameters(self) -> int:
        return -(-(self.norm_parameters - self.hidden - self.layer_embedding) // self.layers)

    @property
    def norm_parameters(self) -> int:
        layers = sum(group.count * self._norms_in(group) for group in self.groups)
        return layers + self.hidden + self.layer_embedding

    @property
    def parameters(self) -> int:
        return self.embedding_parameters + self.linear_parameters + self.norm_parameters

    def _linear_in(self, group: Layers) -> int:
        attention = self.hidden * group.head_dim * (2 * self.heads + group.projected * group.kv_heads)
        return attention + 3 * self.hidden * group.ffn

    def _rows_in(self, group: Layers) -> int:
        attention = group.head_dim * (self.heads + group.projected * group.kv_heads) + self.hidden
        return attention + 2 * group.ffn + self.hidden

    def _norms_in(self, group: Layers) -> int:
        """Norms before attention and MLP; since Gemma 2 also after each, since Gemma 3 also on q and k."""
        if self.family in ("gemma", "other"):
            return 2 * self.hidden
        normed = (1 + bool(group.projected)) * group.head_dim if self.family in _NORMED_QUERIES else 0
        return 4 * self.hidden + normed + (self.hidden if self.layer_embedding else 0)


@dataclass(frozen=True)
class StoredFormat:
    """The format of a pre-quantized checkpoint.

    Of a GGUF file also `detail`, its type, such as Q4_K_M; `bytes`, the size of its tensors; and
    `why_unpacked`, what in it llama.cpp does not support.
    """

    kind: StoredQuantization
    nested: bool = False
    group: int = 128
    detail: str = ""
    bytes: int = 0
    is_quantized: bool = True
    why_unpacked: str = ""

    @property
    def words(self) -> str:
        """The name for messages, as its library calls the format."""
        match self.kind:
            case "nf4":
                return "bitsandbytes NF4" + (", its scales packed too" if self.nested else "")
            case "int8":
                return "bitsandbytes int8"
            case "awq":
                return f"4-bit AWQ in groups of {self.group}"
            case "w8a8":
                return "compressed-tensors int8, its activations rounded to int8 too (W8A8)"
            case "gguf":
                return f"GGUF {self.detail}".strip()
