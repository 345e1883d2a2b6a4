"""The models with built-in names, and the facts of any other Gemma."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.adapter_config import Adapter
from localgemma_cli.models.architecture import FAMILY_NAMES, Architecture, StoredFormat
from localgemma_cli.models.model_config import architecture_of, stored_format_of
from localgemma_cli.models.shapes import (
    GEMMA_2_2B,
    GEMMA_2_9B,
    GEMMA_2_27B,
    GEMMA_3_1B,
    GEMMA_3_4B,
    GEMMA_3_12B,
    GEMMA_3_27B,
    GEMMA_3_270M,
    GEMMA_4_31B,
    GEMMA_4_E2B,
    GEMMA_4_E4B,
    GEMMA_7B,
    GEMMA_7B_OWN_HEAD,
)
from localgemma_cli.types import PromptForm


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before it is downloaded.

    `form`: the prompt form if the repository's tokenizer has no template.
    """

    name: str
    id: str
    architecture: Architecture
    licence: str
    gated: bool
    summary: str
    bundled: bool = False
    stored: StoredFormat | None = None
    form: PromptForm = "raw"
    adapter: Adapter | None = None

    @property
    def is_gguf(self) -> bool:
        return self.stored is not None and self.stored.kind == "gguf"


def _google(
    name: str,
    repository: str,
    architecture: Architecture,
    summary: str,
    form: PromptForm = "gemma",
) -> ModelFacts:
    return ModelFacts(
        name, f"google/{repository}", architecture, "Gemma", gated=True, summary=summary, form=form
    )


def _gemma4(name: str, repository: str, architecture: Architecture, summary: str) -> ModelFacts:
    return ModelFacts(name, f"google/{repository}", architecture, "Apache-2.0", gated=False, summary=summary)


def _qat(size: str, architecture: Architecture) -> ModelFacts:
    """Google's GGUF file of a model trained for its 4 bits (quantization-aware training)."""
    # Q4_0 takes 18 bytes for 32 weights; the embedding is in float16, norms in float32.
    layers = architecture.linear_parameters // 32 * 18 + architecture.norm_parameters * 4
    stored = StoredFormat("gguf", detail="Q4_0", bytes=architecture.embedding_parameters * 2 + layers)
    return ModelFacts(
        f"3-{size}-qat",
        f"google/gemma-3-{size}-it-qat-q4_0-gguf",
        architecture,
        "Gemma",
        gated=True,
        summary=f"Gemma 3 {size}, trained for the 4 bits that its GGUF file has (QAT).",
        stored=stored,
        form="gemma",
    )


def _system(size: str, architecture: Architecture) -> ModelFacts:
    return ModelFacts(
        f"system-{size}",
        f"lunahr/SystemGemma2-{size}-it",
        architecture,
        "Gemma",
        gated=False,
        summary=f"Gemma 2's own {size} weights, with a template that takes a system text.",
        form="gemma",
    )


HUB_MODELS: tuple[ModelFacts, ...] = (
    _google(
        "2b", "gemma-2-2b-it", GEMMA_2_2B, "Gemma 2, 2.6 billion parameters: small and quick, for laptops."
    ),
    _google("7b", "gemma-7b-it", GEMMA_7B, "Gemma 1, 8.5 billion parameters: the first generation."),
    _google(
        "9b",
        "gemma-2-9b-it",
        GEMMA_2_9B,
        "Gemma 2, 9.2 billion parameters: better answers, for one larger GPU.",
    ),
    _google(
        "27b",
        "gemma-2-27b-it",
        GEMMA_2_27B,
        "Gemma 2, 27 billion parameters: the best answers here, and the most memory.",
    ),
)
MORE_MODELS: tuple[ModelFacts, ...] = (
    _google("3-270m", "gemma-3-270m-it", GEMMA_3_270M, "Gemma 3, 0.27 billion parameters: the smallest."),
    _google("3-1b", "gemma-3-1b-it", GEMMA_3_1B, "Gemma 3, 1.0 billion parameters, text only."),
    _google("3-4b", "gemma-3-4b-it", GEMMA_3_4B, "Gemma 3, 3.9 billion parameters of text; without images."),
    _google(
        "3-12b",
        "gemma-3-12b-it",
        GEMMA_3_12B,
        "Gemma 3, 11.8 billion parameters of text; without images.",
    ),
    _google(
        "3-27b", "gemma-3-27b-it", GEMMA_3_27B, "Gemma 3, 27 billion parameters of text; without images."
    ),
    _qat("1b", GEMMA_3_1B),
    _qat("4b", GEMMA_3_4B),
    _qat("12b", GEMMA_3_12B),
    _qat("27b", GEMMA_3_27B),
    _gemma4("4-e2b", "gemma-4-E2B-it", GEMMA_4_E2B, "Gemma 4, effective 2 billion parameters; text only."),
    _gemma4("4-e4b", "gemma-4-E4B-it", GEMMA_4_E4B, "Gemma 4, effective 4 billion parameters; text only."),
    _gemma4("4-31b", "gemma-4-31B-it", GEMMA_4_31B, "Gemma 4, 30.7 billion parameters; text only."),
    _system("2b", GEMMA_2_2B),
    _system("9b", GEMMA_2_9B),
    _system("27b", GEMMA_2_27B),
    _google("7b-base", "gemma-7b", GEMMA_7B, "Gemma 1's base model: it continues your text.", "raw"),
    ModelFacts(
        "7b-awq",
        "TechxGenus/gemma-7b-AWQ",
        GEMMA_7B_OWN_HEAD,
        "Gemma",
        gated=False,
        summary="The same base model, stored in 4 bits (AWQ).",
        stored=StoredFormat("awq"),
        form="raw",
    ),
    ModelFacts(
        "codegemma-2-9b-ultra",
        "EpistemeAI/EpistemeAI-codegemma-2-9b-ultra",
        GEMMA_2_9B,
        "Apache-2.0 (model card); the weights it was tuned from: Gemma",
        gated=False,
        summary="Gemma 2 9b tuned for code, prompted in Alpaca's form.",
        form="alpaca",
    ),
)
_KNOWN = (*HUB_MODELS, *MORE_MODELS)
MODEL_NAMES: tuple[str, ...] = (*(facts.name for facts in _KNOWN), "demo")


def demo_folder() -> Path:
    """The folder of the bundled model."""
    return Path(str(files("localgemma_cli") / "demo" / "model"))


def demo_facts() -> ModelFacts:
    """The bundled model, its shape read from the config.json that ships with it."""
    try:
        config = json.loads((demo_folder() / "config.json").read_text(encoding="utf-8"))
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
        form="gemma",
    )


def catalogue() -> tuple[ModelFacts, ...]:
    """Every built-in model: the four best known, the others, then the bundled demo."""
    return (*_KNOWN, demo_facts())


def lookup(name: str) -> ModelFacts | None:
    """The built-in model of exactly this name; None for a hub id, a folder or a name in models.toml."""
    if name == "demo":
        return demo_facts()
    return next((facts for facts in _KNOWN if facts.name == name), None)


def facts_from_config(config: Mapping[str, object], *, name: str, id: str, force: bool = False) -> ModelFacts:
    """The facts of a repository or folder; NotFoundError for other models than Gemma, unless forced."""
    architecture = architecture_of(config, name, force=force)
    return ModelFacts(
        name=name,
        id=id,
        architecture=architecture,
        licence="see its model card",
        gated=False,
        summary=f"{FAMILY_NAMES[architecture.family]}, {architecture.parameters / 1e9:.1f} billion weights.",
        stored=stored_format_of(config, name),
    )
