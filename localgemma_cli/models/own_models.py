"""models.toml: the user's own names of models, each with its repository and its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from localgemma_cli.config import read_toml
from localgemma_cli.documents import format_value, is_number
from localgemma_cli.environment import config_folder, expand_home
from localgemma_cli.errors import LocalGemmaError, UsageError
from localgemma_cli.models.catalog import MODEL_NAMES
from localgemma_cli.sampling import Mode, sampling_for
from localgemma_cli.types import PROMPT_FORMS

AUTO = "auto"
_TEXTS = ("repository", "revision", "template", "adapter", "endpoint", "system")
_WHOLE = ("top_k", "seed", "max_new_tokens")
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", *_WHOLE)


@dataclass(frozen=True)
class OwnModel:
    """One table of `models.toml`; `repository` is a built-in name, a hub id, a folder or a server's model."""

    name: str
    repository: str | None = None
    revision: str | None = None
    template: str | None = None
    adapter: str | None = None
    endpoint: str | None = None
    system: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)


def own_models(path: Path | None = None) -> dict[str, OwnModel]:
    """The models by name, {} without a file; UsageError names the file and the key of an invalid value."""
    path = path or config_folder() / "models.toml"
    return {name: _own_model(name, table, path) for name, table in read_toml(path).items()}


def own_model(name: str | None) -> OwnModel | None:
    return own_models().get(name) if name else None


def check_template(template: str) -> str:
    """Return `template`; UsageError unless it is a known form or the name of a Jinja file."""
    if template != AUTO and template not in PROMPT_FORMS and not template.endswith(".jinja"):
        raise UsageError(
            f"Unknown --template: {format_value(template)}.",
            f"Choose one of: {', '.join((AUTO, *PROMPT_FORMS))}; or a file that ends in .jinja.",
        )
    return template


def _own_model(name: str, table: object, path: Path) -> OwnModel:
    if name in MODEL_NAMES or not name or "/" in name:
        what = "is the name of a built-in model" if name in MODEL_NAMES else "is not a valid name"
        raise UsageError(f"{path}: {format_value(name)} {what}.", "Choose another name, without a slash.")
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {name} must be a table.", f"Write [{name}], and its keys below it.")
    allowed = (*_TEXTS, "sampling")
    for key, value in table.items():
        if key not in allowed:
            raise UsageError(
                f"{path}: unknown key {format_value(key)} in [{name}].", f"Allowed: {', '.join(allowed)}."
            )
        if key in _TEXTS and (not isinstance(value, str) or not value.strip()):
            raise UsageError(f"{path}: {key} of [{name}] must be text.", "Correct the value.")
    if not table.keys() & {"repository", "endpoint", "adapter"}:
        raise UsageError(
            f"{path}: [{name}] needs a repository, an adapter or an endpoint.",
            'Add one, for example: repository = "google/gemma-2-2b-it"',
        )
    texts = {key: value for key, value in table.items() if key in _TEXTS}
    if "template" in texts:
        texts["template"] = _template(texts["template"], name, path)
    return OwnModel(name, **texts, sampling=_sampling(table.get("sampling", {}), name, path))


def _template(template: str, name: str, path: Path) -> str:
    """A file's path is relative to the folder of models.toml."""
    try:
        check_template(template)
    except UsageError as error:
        raise UsageError(
            f"{path}: unknown template of [{name}]: {format_value(template)}.", error.hint
        ) from None
    return str(path.parent / expand_home(template)) if template.endswith(".jinja") else template


def _sampling(table: object, name: str, path: Path) -> dict[str, float]:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: sampling of [{name}] must be a table.", "sampling = { temperature = 0.2 }")
    values = {key.replace("-", "_"): value for key, value in table.items()}
    for key, value in values.items():
        if key not in _NUMBERS:
            known = ", ".join(_NUMBERS).replace("_", "-")
            raise UsageError(
                f"{path}: unknown key {format_value(key)} in sampling of [{name}].", f"Allowed: {known}."
            )
        if not is_number(value) or (key in _WHOLE and not isinstance(value, int)):
            raise UsageError(f"{path}: {key} in sampling of [{name}] must be a number.", "Correct the value.")
    try:
        sampling_for(Mode.CHAT, values)
    except LocalGemmaError as error:
        raise UsageError(f"{path}: sampling of [{name}]: {error.message}", error.hint) from None
    return values
