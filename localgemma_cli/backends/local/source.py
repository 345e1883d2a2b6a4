"""What `--model` names: facts for the planner first, a folder of weights once they are wanted."""

import difflib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from localgemma_cli.errors import LocalGemmaError, NotFoundError, UsageError
from localgemma_cli.events import ProgressSink
from localgemma_cli.planning.catalog import MODEL_NAMES, ModelFacts, facts_from_config, lookup
from localgemma_cli.planning.own_models import OwnModel, own_models

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A model's facts, and its folder where that is known without asking the hub."""

    facts: ModelFacts
    folder: Path | None
    revision: str | None
    offline: bool
    assistant: "Source | None" = None


def resolve_assistant(model: str, *, offline: bool) -> Source:
    """As `resolve`; `--revision` is the larger model's."""
    with _about_the_assistant():
        return resolve(model, revision=None, offline=offline)


def resolve(model: str, *, revision: str | None, offline: bool, force: bool = False) -> Source:
    """Raises NotFoundError, with the nearest name, where `model` is nothing that could be loaded."""
    own = own_models()
    if model in own:
        return _resolve_own(own[model], revision, offline, force)
    return _resolve_known(model, revision, offline, force, others=tuple(own))


def _resolve_known(
    model: str, revision: str | None, offline: bool, force: bool, others: tuple[str, ...] = ()
) -> Source:
    facts = lookup(model)
    if facts is not None:
        folder = Path(str(files("localgemma_cli.demo") / "model")) if facts.bundled else None
        return Source(facts, folder, revision, offline)
    path = Path(model).expanduser()
    if path.is_dir():
        facts = facts_from_config(_local_config(path), name=model, id=model, force=force)
        return Source(facts, path, revision, offline)
    if _HUB_ID.fullmatch(model) and not model.startswith((".", os.sep)):
        from localgemma_cli.backends.local.hub import read_config  # only a hub id needs the hub's client

        config = read_config(model, revision=revision, offline=offline)
        return Source(facts_from_config(config, name=model, id=model, force=force), None, revision, offline)
    names = (*MODEL_NAMES, *others)
    close = difflib.get_close_matches(model, names, n=1, cutoff=0.3)
    raise NotFoundError(
        f"There is no model {model!r}: not a known name, not a folder, not a hub id.",
        f"Did you mean {close[0]}?" if close else f"Known names: {', '.join(names)}; or ORGANISATION/NAME.",
    )


def _resolve_own(own: OwnModel, revision: str | None, offline: bool, force: bool) -> Source:
    if own.repository is None:
        raise UsageError(
            f"{own.name} of models.toml names no repository to load.", 'Add repository = "…" to its table.'
        )
    found = _resolve_known(own.repository, revision or own.revision, offline, force)
    return replace(found, facts=replace(found.facts, name=own.name))


def fetch(source: Source, progress: ProgressSink) -> Path:
    """The folder with the weights; downloads them where they are not on disk."""
    if source.folder is not None:
        return source.folder
    from localgemma_cli.backends.local import hub

    return hub.fetch(
        source.facts.id,
        revision=source.revision,
        offline=source.offline,
        gated=source.facts.gated or None,
        progress=progress,
    )


def fetch_tokenizer(source: Source, progress: ProgressSink) -> Path:
    """A folder with at least the tokenizer; downloads no weights."""
    if source.folder is not None:
        return source.folder
    from localgemma_cli.backends.local import hub

    return hub.fetch_tokenizer(
        source.facts.id,
        revision=source.revision,
        offline=source.offline,
        gated=source.facts.gated or None,
        progress=progress,
    )


def fetch_assistant(source: Source, progress: ProgressSink) -> Path | None:
    """The folder of the model that drafts, where there is one; as `fetch`."""
    if source.assistant is None:
        return None
    with _about_the_assistant():
        return fetch(source.assistant, progress)


@contextmanager
def _about_the_assistant() -> Iterator[None]:
    """Of two models on one command line, an error must say which."""
    try:
        yield
    except LocalGemmaError as error:
        hint = f"{error.hint.rstrip('.')}; or leave --assistant out."
        raise type(error)(f"The assistant: {error.message}", hint) from error


def _local_config(folder: Path) -> dict[str, object]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(
            f"{folder} holds no config.json, so it is not a model.",
            "Give the folder that the weights are in.",
        ) from None
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"{folder}/config.json cannot be read: {error}", "Download the model again."
        ) from error
    if not isinstance(config, dict):
        raise NotFoundError(f"{folder}/config.json is not a model's config.", "Download the model again.")
    return config
