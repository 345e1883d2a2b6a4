"""The adapter_config.json of a LoRA or DoRA adapter, read without peft."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from localgemma_cli.documents import name_or
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.architecture import Architecture
from localgemma_cli.models.json_fields import JsonFields

# Variants of LoRA that are not supported.
_OTHER_KINDS = {
    "layer_replication": "repeats layers of its base",
    "target_parameters": "changes parameters outside of modules",
    "alora_invocation_tokens": "is active only after certain tokens",
    "use_qalora": "pools its inputs",
    "use_bdlora": "is block-diagonal",
    "arrow_config": "chooses between several adapters",
    "kasa_config": "truncates its base's weights",
    "monteclora_config": "samples its weights at each step",
}
_ENDS = frozenset({"embed_tokens", "lm_head"})
_MAX_RANK = 65_536  # a rank above a matrix's width adds nothing


@dataclass(frozen=True)
class Adapter:
    """What an adapter changes.

    `rank`: the largest `r`. `base`: the repository or folder that it was trained on.
    `targets`: the matrices that it changes, by the last part of their name; None: all in the layers.
    `replaced`: matrices that it contains in full. `ends`: the embedding and the head, if it changes them;
    `keeps_tied`: a head tied to the embedding stays tied.
    """

    id: str
    base: str
    rank: int
    dora: bool = False
    targets: frozenset[str] | None = None
    replaced: frozenset[str] = frozenset()
    ends: frozenset[str] = frozenset()
    keeps_tied: bool = False

    @property
    def words(self) -> str:
        return f"{'DoRA' if self.dora else 'LoRA'} adapter {self.id} of rank {self.rank}"

    def changes(self, matrix: str) -> bool:
        if self.targets is None:
            return matrix.endswith("_proj") or matrix in self.ends
        return matrix in self.targets

    def separates_head(self, *, merged: bool) -> bool:
        """Whether a tied head and embedding become two matrices, because they change differently."""
        return not self.keeps_tied and bool(_ENDS & (self.replaced | (self.ends if merged else set())))


def adapter_of(config: Mapping[str, object], id: str) -> Adapter:
    """The adapter that a config describes.

    NotFoundError for other kinds of adapters, and for a damaged config.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise NotFoundError(
            f"{id} is not a LoRA or DoRA adapter: its adapter_config.json names {name_or(kind, 'nothing')}.",
            "Only these two kinds are supported; merge the adapter with peft, and use the merged model.",
        )
    own = JsonFields(config, f"adapter_config.json of {id}")
    if key := next((key for key in _OTHER_KINDS if config.get(key)), None):
        raise NotFoundError(
            f"{id} {_OTHER_KINDS[key]} ({key}), which localgemma does not support.",
            "Merge the adapter with peft, and use the merged model.",
        )
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise own.fault("base_model_name_or_path", "text")
    own.require_number("lora_alpha", 0, 1e9)
    ranks = own.part("rank_pattern") or JsonFields({}, "")
    targets, replaced = _targets(own), frozenset(_last_parts(own.texts("modules_to_save") or ()))
    return Adapter(
        id,
        base or "",
        max(own.whole("r", 1, _MAX_RANK), *(ranks.whole(key, 1, _MAX_RANK) for key in ranks.values), 1),
        own.flag("use_dora"),
        targets,
        replaced,
        ends=frozenset(end for end in _ENDS if end in str(config.get("target_modules"))),
        keeps_tied=own.flag("ensure_weight_tying"),
    )


def adapter_bytes(adapter: Adapter, shape: Architecture) -> int:
    """Bytes of an adapter that is not merged; peft keeps its factors in fp32.

    An upper bound if it skips layers or names its matrices by a pattern.
    """
    total = 0
    for name, count, wide, high in _matrices(shape):
        if name not in adapter.replaced and adapter.changes(name):
            total += 4 * count * (adapter.rank * (wide + high) + (high if adapter.dora else 0))
    return total


def _matrices(shape: Architecture) -> Iterator[tuple[str, int, int, int]]:
    """Each kind of matrix: its name, its count, and its input and output features."""
    for group in shape.groups:
        queries, keys = shape.heads * group.head_dim, group.kv_heads * group.head_dim
        yield "q_proj", group.count, shape.hidden, queries
        yield "k_proj", group.count if group.projected else 0, shape.hidden, keys
        yield "v_proj", group.count if group.projected == 2 else 0, shape.hidden, keys
        yield "o_proj", group.count, queries, shape.hidden
        yield "gate_proj", group.count, shape.hidden, group.ffn
        yield "up_proj", group.count, shape.hidden, group.ffn
        yield "down_proj", group.count, group.ffn, shape.hidden
    yield "embed_tokens", 1, shape.vocabulary, shape.hidden
    yield "lm_head", 1, shape.hidden, shape.vocabulary


def _targets(own: JsonFields) -> frozenset[str] | None:
    """The matrices by name; None for a pattern."""
    if isinstance(own.values.get("target_modules"), str):
        return None
    names = own.texts("target_modules")
    return None if names is None else frozenset(_last_parts(names))


def _last_parts(names: Iterable[str]) -> Iterator[str]:
    """The parts after the last dot."""
    return (name.rpartition(".")[2] for name in names)
