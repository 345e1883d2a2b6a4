"""Resolve the value of `--model`: a name, a folder, a file or a hub id, to the facts of the model."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from localgemma_cli.documents import failure_reason, read_json_object
from localgemma_cli.environment import expand_home
from localgemma_cli.errors import LocalGemmaError, NotFoundError, UsageError
from localgemma_cli.models.adapter_config import Adapter, adapter_of
from localgemma_cli.models.catalog import MODEL_NAMES, ModelFacts, demo_folder, facts_from_config, lookup
from localgemma_cli.models.gguf_names import GgufName, parse_gguf_name, without_host
from localgemma_cli.models.model_names import nearest_model
from localgemma_cli.models.own_models import OwnModel, own_models
from localgemma_cli.models.unsupported_formats import (
    GgufOnlyError,
    is_adapter,
    refuse_unsupported_formats,
)

if TYPE_CHECKING:
    from localgemma_cli.models.gguf_header import Gguf

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")  # the hub allows no longer names
_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Source:
    """A model's facts, and its folder or GGUF file; None if it comes from the hub.

    `adapter_revision`: the revision of an adapter on the hub. `note`: the default among GGUF files.
    """

    facts: ModelFacts
    folder: Path | None
    revision: str | None
    offline: bool
    assistant: "Source | None" = None
    adapter_revision: str | None = None
    note: str = ""


def resolve_assistant(model: str, *, offline: bool) -> Source:
    """Resolve --assistant as `resolve` does; `--revision` applies to the larger model only."""
    with naming_the_assistant():
        source = resolve(model, revision=None, offline=offline)
        if source.facts.adapter is not None:
            raise UsageError(
                f"{model} has an adapter, which an assistant model cannot have.", "Use its base model."
            )
        return source


def resolve(model: str, *, revision: str | None, offline: bool, force: bool = False) -> Source:
    """The model that a name means.

    NotFoundError, with the nearest known name, for a model that does not exist.
    """
    own = own_models()
    if model in own:
        return _resolve_own(own[model], revision, offline, force)
    return _resolve_known(model, revision, offline, force, others=tuple(own))


def _resolve_known(
    model: str, revision: str | None, offline: bool, force: bool, others: tuple[str, ...] = ()
) -> Source:
    facts = lookup(model)
    if facts is not None:
        folder = demo_folder() if facts.bundled else None
        return Source(facts, folder, revision, offline)
    path = expand_home(model)
    if os.path.isdir(path):  # False too for a name that no file can have
        there = _names_in(path)
        if is_adapter(there):
            return _adapted(None, model, revision, offline, force)
        refuse_unsupported_formats(there, model, on_disk=path)
        facts = facts_from_config(_local_config(path), name=model, id=model, force=force)
        return Source(_with_the_stored_head(facts, path), path, revision, offline)
    if os.path.isfile(path):
        return Source(_file_facts(path, model), path, revision, offline)
    hub_id = without_host(model)
    if _HUB_ID.fullmatch(hub_id) and not hub_id.startswith((".", os.sep)):
        return _resolve_hub(hub_id, revision, offline, force)
    if name := parse_gguf_name(model):
        return _resolve_hub_gguf(name, revision, offline)
    if model.lower().endswith(".gguf"):
        raise NotFoundError(
            f"GGUF file not found: {model}.", "Check the path. For a file on the hub, use -m REPO:FILE.gguf."
        )
    names = (*MODEL_NAMES, *others)
    nearest = nearest_model(model, others)
    raise NotFoundError(
        f"Model not found: {model!r} is not a known name, a folder or a hub id.",
        f"Did you mean {nearest}?" if nearest else f"Known names: {', '.join(names)}; or ORGANISATION/NAME.",
    )


def _resolve_hub(model: str, revision: str | None, offline: bool, force: bool) -> Source:
    from localgemma_cli.models.hub.cache import cached_snapshot
    from localgemma_cli.models.hub.client import fetch_config  # only a hub id needs the client
    from localgemma_cli.models.hub.gguf import has_only_ggufs

    if has_only_ggufs(model, revision, offline):
        return _resolve_hub_gguf(GgufName(model), revision, offline)
    try:
        config = fetch_config(model, revision=revision, offline=offline)
    except GgufOnlyError:
        return _resolve_hub_gguf(GgufName(model), revision, offline)
    except NotFoundError as error:
        raise _with_the_nearest(error, model) from error
    if "peft_type" in config:
        return _adapted(None, model, revision, offline, force)
    facts = facts_from_config(config, name=model, id=model, force=force)
    return Source(_with_the_stored_head(facts, cached_snapshot(model, revision)), None, revision, offline)


def _resolve_hub_gguf(name: GgufName, revision: str | None, offline: bool) -> Source:
    from localgemma_cli.models.hub.gguf import read_hub_gguf

    found = read_hub_gguf(name, revision=revision, offline=offline)
    return Source(_gguf_facts(found.header, found.name.id), None, revision, offline, note=found.note)


def _with_the_nearest(error: NotFoundError, model: str) -> NotFoundError:
    nearest = nearest_model(model)
    facts = lookup(nearest) if nearest else None
    if facts is None or facts.id == model:
        return error
    return type(error)(error.message, f"Did you mean {facts.name} ({facts.id})? {error.hint}")


def _resolve_own(own: OwnModel, revision: str | None, offline: bool, force: bool) -> Source:
    revision = revision or own.revision
    if own.adapter is not None:
        found = _adapted(own.repository, own.adapter, revision, offline, force)
    elif own.repository is not None:
        found = _resolve_known(own.repository, revision, offline, force)
    else:
        raise UsageError(
            f"[{own.name}] in models.toml has no repository to load.", 'Add repository = "…" to its table.'
        )
    return replace(found, facts=replace(found.facts, name=own.name))


def resolve_adapted(
    model: str | None, adapter: str, *, revision: str | None, offline: bool, force: bool = False
) -> Source:
    """The adapter with its base model, or with `model` instead; `revision` applies to `model` if given.

    The adapter replaces one that models.toml names for the model.
    """
    own = own_models().get(model) if model else None
    if own is not None:
        return _resolve_own(replace(own, adapter=adapter), revision, offline, force)
    return _adapted(model, adapter, revision, offline, force)


def _adapted(model: str | None, adapter: str, revision: str | None, offline: bool, force: bool) -> Source:
    found = _adapter(adapter, revision if model is None else None, offline)
    base = model or found.base
    if not base:
        raise NotFoundError(
            f"Adapter {adapter} does not name its base model.", "Name the base model with -m."
        )
    try:
        source = _resolve_known(base, revision if model else None, offline, force)
    except NotFoundError as error:
        if model is not None:
            raise
        raise NotFoundError(
            f"Cannot load the base model of adapter {adapter}: {error.message}",
            "Name the base model with -m: a folder or a hub id.",
        ) from error
    if source.facts.adapter is not None:
        raise NotFoundError(f"{base} is itself an adapter.", "Name a complete model with -m.")
    facts = replace(source.facts, adapter=found)
    return replace(source, facts=facts, adapter_revision=None if model else revision)


def _with_the_stored_head(facts: ModelFacts, folder: Path | None) -> ModelFacts:
    """The facts, with an output head of its own if the files contain one."""
    if folder is None:
        return facts
    from localgemma_cli.models.safetensors_file import alike, is_tied, read_checkpoint

    try:
        tied = is_tied(facts.architecture.tied_head, read_checkpoint(folder), alike)
    except (OSError, ValueError):  # the loader reports what is wrong with the files
        return facts
    return replace(facts, architecture=replace(facts.architecture, tied_head=tied))


def _adapter(adapter: str, revision: str | None, offline: bool) -> Adapter:
    path = expand_home(adapter)
    if os.path.isdir(path):  # False too for a name that no file can have
        return adapter_of(_local_config(path, _ADAPTER_CONFIG), adapter)
    if _HUB_ID.fullmatch(adapter) and not adapter.startswith((".", os.sep)):
        from localgemma_cli.models.hub.client import fetch_config

        config = fetch_config(adapter, revision=revision, offline=offline, name=_ADAPTER_CONFIG)
        return adapter_of(config, adapter)
    raise NotFoundError(
        f"Adapter not found: {adapter!r} is not a folder or a hub id.",
        "Use the folder with its adapter_config.json, or ORGANISATION/NAME.",
    )


def _file_facts(path: Path, name: str) -> ModelFacts:
    """The facts of a GGUF file."""
    if path.suffix.lower() != ".gguf":
        raise NotFoundError(f"{name} is not a GGUF file.", "Use a model's folder, or a .gguf file.")
    from localgemma_cli.models.gguf_header import read_gguf

    return _gguf_facts(read_gguf(path), name)


def _gguf_facts(header: "Gguf", name: str) -> ModelFacts:
    from localgemma_cli.models.gguf_config import gguf_config, why_unpacked

    stored = replace(header.stored, why_unpacked=why_unpacked(header))
    return replace(facts_from_config(gguf_config(header), name=name, id=name), stored=stored)


@contextmanager
def naming_the_assistant() -> Iterator[None]:
    """Errors inside name the assistant model, since a command line has two models."""
    try:
        yield
    except LocalGemmaError as error:
        hint = f"{error.hint.rstrip('.')}; or remove --assistant."
        raise type(error)(f"The assistant: {error.message}", hint) from error


def _names_in(folder: Path) -> list[str]:
    try:
        return [each.name for each in folder.iterdir()]
    except OSError as error:
        raise NotFoundError(
            f"Cannot read {folder}: {failure_reason(error)}.", "Check its permissions, or use another folder."
        ) from None


def _local_config(folder: Path, name: str = "config.json") -> dict[str, object]:
    try:
        return read_json_object(folder / name)
    except FileNotFoundError:
        what = "a model" if name == "config.json" else "an adapter"
        raise NotFoundError(
            f"{folder} contains no {name}, so it is not {what}.", "Use the folder that contains the weights."
        ) from None
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"Cannot read {folder}/{name}: {failure_reason(error)}.", "Download the model again."
        ) from error
