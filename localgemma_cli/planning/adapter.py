"""A LoRA or DoRA adapter: what its adapter_config.json says, read without peft."""

from collections.abc import Mapping
from dataclasses import dataclass

from localgemma_cli.errors import NotFoundError


@dataclass(frozen=True)
class Adapter:
    """`rank` as peft's `r`; `base` is the repository or folder that it was trained on."""

    id: str
    base: str
    rank: int
    dora: bool = False

    @property
    def words(self) -> str:
        return f"{'DoRA' if self.dora else 'LoRA'} adapter {self.id} of rank {self.rank}"


def adapter_of(config: Mapping[str, object], id: str) -> Adapter:
    """A NotFoundError for any other kind of adapter than LoRA, and where the config is damaged."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise NotFoundError(
            f"{id} is not a LoRA or DoRA adapter: adapter_config.json says {kind or 'nothing'}.",
            "Only those two kinds are loaded; merge the adapter with peft, and give the merged model.",
        )
    base, rank = config.get("base_model_name_or_path"), config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise NotFoundError(
            f"The adapter_config.json of {id} is damaged: r is {rank!r}.", "Download the adapter again."
        )
    return Adapter(id, base if isinstance(base, str) else "", rank, bool(config.get("use_dora")))
