"""A LoRA or DoRA adapter: what its adapter_config.json says, read without peft."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from localgemma_cli.documents import name_or
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.architecture import Architecture
from localgemma_cli.models.json_fields import JsonFields

# Variants of LoRA that compute otherwise, or something else than a model's matrices.
_OTHER_KINDS = {
    "layer_replication": "repeats layers of its base",
    "target_parameters": "changes parameters that are no module's own",
    "alora_invocation_tokens": "begins to work at a certain text only",
    "use_qalora": "pools what it reads",
    "use_bdlora": "is made of blocks",
    "arrow_config": "chooses among several adapters",
    "kasa_config": "cuts its base before it changes it",
    "monteclora_config": "draws its weights anew at each step",
}
_ENDS = frozenset({"embed_tokens", "lm_head"})
_MAX_RANK = 65_536  # a rank beyond a matrix's width adds nothing


@dataclass(frozen=True)
class Adapter:
    """`rank` as peft's `r`, the largest of them; `base` is the repository or folder that it was trained on.

    `targets`: the matrices that it changes, by the last part of their name; None: every one in the layers.
    `replaced`: those that it brings whole. `ends`: the embedding and the head, where it changes those too;
    `keeps_tied`: a head that is the embedding stays so.
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
        """Whether head and embedding become two matrices: one changes, or both do in ways of their own."""
        return not self.keeps_tied and bool(_ENDS & (self.replaced | (self.ends if merged else set())))


def adapter_of(config: Mapping[str, object], id: str) -> Adapter:
    """A NotFoundError for any other kind of adapter than LoRA, and where the config is damaged."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise NotFoundError(
            f"{id} is not a LoRA or DoRA adapter: adapter_config.json says {name_or(kind, 'nothing')}.",
            "Only those two kinds are loaded; merge the adapter with peft, and give the merged model.",
        )
    own = JsonFields(config, f"adapter_config.json of {id}")
    if key := next((key for key in _OTHER_KINDS if config.get(key)), None):
        raise NotFoundError(
            f"{id} {_OTHER_KINDS[key]} ({key}), which localgemma does not support.",
            "Merge the adapter with peft, and give the merged model.",
        )
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise own.fault("base_model_name_or_path", "a text")
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
    """Of an adapter beside the weights; peft keeps its factors in fp32.

    At most, where it leaves layers out or names its matrices by a pattern.
    """
    total = 0
    for name, count, wide, high in _matrices(shape):
        if name not in adapter.replaced and adapter.changes(name):
            total += 4 * count * (adapter.rank * (wide + high) + (high if adapter.dora else 0))
    return total


def _matrices(shape: Architecture) -> Iterator[tuple[str, int, int, int]]:
    """Each kind of matrix: its name, how many there are, features in and out."""
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
    """None for a pattern."""
    if isinstance(own.values.get("target_modules"), str):
        return None
    names = own.texts("target_modules")
    return None if names is None else frozenset(_last_parts(names))


def _last_parts(names: Iterable[str]) -> Iterator[str]:
    """Of dotted names."""
    return (name.rpartition(".")[2] for name in names)
