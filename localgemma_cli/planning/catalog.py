"""The models known by name, and the facts of any other Gemma."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from localgemma_cli.errors import NotFoundError
from localgemma_cli.planning.adapter import Adapter
from localgemma_cli.planning.architecture import FAMILY_NAMES, Architecture, StoredFormat
from localgemma_cli.planning.config import architecture_of, stored_format_of


@dataclass(frozen=True)
class ModelFacts:
    name: str
    id: str
    architecture: Architecture
    licence: str
    gated: bool
    summary: str
    bundled: bool = False
    stored: StoredFormat | None = None
    adapter: Adapter | None = None


def _gemma2(layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, ffn: int) -> Architecture:
    return Architecture(
        family="gemma2",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        vocabulary=256_000,
        context_length=8192,
        sliding_window=4096,
        sliding_layers=(layers + 1) // 2,
        softcap=True,
        tied_head=True,
    )


_GEMMA_7B = Architecture(
    family="gemma",
    layers=28,
    hidden=3072,
    heads=16,
    kv_heads=16,
    head_dim=256,
    ffn=24576,
    vocabulary=256_000,
    context_length=8192,
    sliding_window=None,
    sliding_layers=0,
    softcap=False,
    tied_head=True,
)


def _google(name: str, repository: str, architecture: Architecture, summary: str) -> ModelFacts:
    return ModelFacts(name, f"google/{repository}", architecture, "Gemma", gated=True, summary=summary)


HUB_MODELS: tuple[ModelFacts, ...] = (
    _google(
        "2b",
        "gemma-2-2b-it",
        _gemma2(26, 2304, 8, 4, 256, 9216),
        "Gemma 2, 2.6 billion parameters: small and quick, for laptops.",
    ),
    _google(
        "7b",
        "gemma-7b-it",
        _GEMMA_7B,
        "Gemma 1, 8.5 billion parameters: the first generation.",
    ),
    _google(
        "9b",
        "gemma-2-9b-it",
        _gemma2(42, 3584, 16, 8, 256, 14336),
        "Gemma 2, 9.2 billion parameters: better answers, for one larger GPU.",
    ),
    _google(
        "27b",
        "gemma-2-27b-it",
        _gemma2(46, 4608, 32, 16, 128, 36864),
        "Gemma 2, 27 billion parameters: the best answers here, and the most memory.",
    ),
)
MODEL_NAMES: tuple[str, ...] = (*(facts.name for facts in HUB_MODELS), "demo")


def demo_facts() -> ModelFacts:
    """The bundled model, its shape read from the config.json that ships with it."""
    source = files("localgemma_cli") / "demo" / "model" / "config.json"
    try:
        config = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"The bundled demo model is not readable: {error}.", "Install localgemma-cli again."
        ) from error
    return ModelFacts(
        name="demo",
        id="demo",
        architecture=architecture_of(config, "demo"),
        licence="Apache-2.0",
        gated=False,
        summary="A tiny guide to this program, bundled with it; not a general assistant.",
        bundled=True,
    )


def catalogue() -> tuple[ModelFacts, ...]:
    """Every built-in model: the four of the hub, then the bundled demo."""
    return (*HUB_MODELS, demo_facts())


def lookup(name: str) -> ModelFacts | None:
    """The built-in model of exactly that name; None for a hub id, a folder or a name of the user's own."""
    if name == "demo":
        return demo_facts()
    return next((facts for facts in HUB_MODELS if facts.name == name), None)


def facts_from_config(config: Mapping[str, object], *, name: str, id: str) -> ModelFacts:
    """Facts of a hub repository or local folder from its config.json; NotFoundError where it is no Gemma."""
    architecture = architecture_of(config, name)
    return ModelFacts(
        name=name,
        id=id,
        architecture=architecture,
        licence="see its model card",
        gated=False,
        summary=f"{FAMILY_NAMES[architecture.family]}, {architecture.parameters / 1e9:.1f} billion weights.",
        stored=stored_format_of(config, name),
    )
