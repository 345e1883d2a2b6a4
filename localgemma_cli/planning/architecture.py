"""The shape of a Gemma decoder, and the form its weights are stored in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from localgemma_cli.planning.choices import StoredQuantization

Family = Literal["gemma", "gemma2", "gemma3_text"]

FAMILY_NAMES: Mapping[Family, str] = {"gemma": "Gemma 1", "gemma2": "Gemma 2", "gemma3_text": "Gemma 3"}


@dataclass(frozen=True)
class Architecture:
    """The shape of a Gemma decoder: all that memory and speed depend on."""

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

    @property
    def embedding_parameters(self) -> int:
        """The embedding, and the output head where that is a matrix of its own."""
        return self.vocabulary * self.hidden * (1 if self.tied_head else 2)

    @property
    def layer_linear_parameters(self) -> int:
        """What quantization shrinks in one layer: the projections of attention and of the MLP."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.ffn

    @property
    def layer_linear_rows(self) -> int:
        """Output features of one layer's projections together; int8 keeps one scale for each."""
        attention = self.head_dim * (self.heads + 2 * self.kv_heads) + self.hidden
        return attention + 2 * self.ffn + self.hidden

    @property
    def layer_norm_parameters(self) -> int:
        """Norms stand before attention and MLP; since Gemma 2 also after each, in Gemma 3 also on q and k."""
        if self.family == "gemma":
            return 2 * self.hidden
        return 4 * self.hidden + (2 * self.head_dim if self.family == "gemma3_text" else 0)

    @property
    def linear_parameters(self) -> int:
        return self.layers * self.layer_linear_parameters

    @property
    def norm_parameters(self) -> int:
        return self.layers * self.layer_norm_parameters + self.hidden

    @property
    def parameters(self) -> int:
        return self.embedding_parameters + self.linear_parameters + self.norm_parameters


@dataclass(frozen=True)
class StoredFormat:
    """A checkpoint that is quantized already; `detail` is what a GGUF file's own name for its type is."""

    kind: StoredQuantization
    nested: bool = False
    group: int = 128
    detail: str = ""

    @property
    def words(self) -> str:
        """For people: the library's name of the form."""
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
