"""Fetch what a `Source` names: the weights, the tokenizer and the adapter, from disk or from the hub."""

import os
from dataclasses import dataclass
from pathlib import Path

from localgemma_cli.environment import expand_home
from localgemma_cli.errors import NotFoundError
from localgemma_cli.events import ProgressSink
from localgemma_cli.models.adapter_config import Adapter
from localgemma_cli.models.catalog import ModelFacts
from localgemma_cli.models.gguf_names import gguf_name
from localgemma_cli.models.resolve import Source, naming_the_assistant

CONFIRM_ABOVE = 100_000_000  # bytes; a larger download needs the user's consent


@dataclass(frozen=True)
class PendingDownload:
    """A model or adapter to download before a source can be loaded; `size` in bytes."""

    model_id: str
    licence: str
    size: int


def missing_from_disk(source: Source) -> tuple[tuple[ModelFacts | Adapter, str | None], ...]:
    """The models and the adapter that are incomplete on disk, each with its revision; uses no network."""
    adapter = source.facts.adapter
    parts: list[tuple[ModelFacts | Adapter, str | None]] = []
    if source.folder is None:
        parts.append((source.facts, source.revision))
    if adapter is not None and not os.path.isdir(expand_home(adapter.id)):
        parts.append((adapter, source.adapter_revision))
    if source.assistant is not None and source.assistant.folder is None:
        parts.append((source.assistant.facts, source.assistant.revision))
    if not parts:  # spare the import of the hub's client
        return ()
    return tuple((part, revision) for part, revision in parts if not is_on_disk(part, revision))


def is_on_disk(part: ModelFacts | Adapter, revision: str | None = None) -> bool:
    """Whether a hub model or adapter is complete in the hub's cache; uses no network."""
    from localgemma_cli.models.hub.cache import cached_snapshot

    if isinstance(part, ModelFacts) and part.is_gguf:
        from localgemma_cli.models.hub.gguf import find_cached_gguf

        return find_cached_gguf(gguf_name(part.id), revision) is not None
    return cached_snapshot(part.id, revision) is not None


def list_downloads(source: Source) -> tuple[PendingDownload, ...]:
    """The downloads with their sizes, from the hub; raises what a download would raise at its start."""
    from localgemma_cli.models.hub.client import bytes_to_fetch
    from localgemma_cli.models.hub.gguf import gguf_bytes_to_fetch

    found = []
    for part, revision in missing_from_disk(source):
        facts = part if isinstance(part, ModelFacts) else None
        gated = (facts and facts.gated) or None
        if facts and facts.is_gguf:
            size = gguf_bytes_to_fetch(gguf_name(facts.id), revision=revision, gated=gated)
        else:
            size = bytes_to_fetch(part.id, revision=revision, gated=gated)
        found.append(PendingDownload(part.id, facts.licence if facts else "see its card", size))
    return tuple(found)


def fetch_adapter(source: Source, progress: ProgressSink, largest_update: int | None = None) -> Path | None:
    """The adapter's folder, downloaded if it is not on disk; None without an adapter."""
    adapter = source.facts.adapter
    if adapter is None:
        return None
    path = expand_home(adapter.id)
    if os.path.isdir(path):
        return path
    from localgemma_cli.models.hub import client as hub

    return hub.fetch_snapshot(
        adapter.id,
        revision=source.adapter_revision,
        offline=source.offline,
        largest_update=largest_update,
        progress=progress,
    )


def tokenizer_folder(folder: Path, adapter: Path | None) -> Path:
    """The adapter's folder if it contains a tokenizer, which may have further tokens; else the base's."""
    if adapter and any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return adapter
    return folder


def fetch_model(source: Source, progress: ProgressSink, largest_update: int | None = None) -> Path:
    """The folder with the weights, or the GGUF file, downloaded if they are not on disk.

    A copy on disk is updated if that downloads at most `largest_update` bytes.
    """
    if source.folder is not None:
        return source.folder
    if source.facts.is_gguf:
        from localgemma_cli.models.hub.gguf import fetch_gguf

        return fetch_gguf(
            gguf_name(source.facts.id),
            revision=source.revision,
            offline=source.offline,
            gated=source.facts.gated or None,
            largest_update=largest_update,
            progress=progress,
        )
    from localgemma_cli.models.hub import client as hub

    return hub.fetch_snapshot(
        source.facts.id,
        revision=source.revision,
        offline=source.offline,
        gated=source.facts.gated or None,
        largest_update=largest_update,
        progress=progress,
    )


def fetch_tokenizer(source: Source, progress: ProgressSink) -> Path:
    """A folder with at least the tokenizer, downloaded without the weights; a GGUF file contains its own."""
    adapter = fetch_adapter(source, progress)
    if source.folder is not None:
        return tokenizer_folder(source.folder, adapter)
    if source.facts.is_gguf:
        return _gguf_on_disk(source, progress)
    from localgemma_cli.models.hub import client as hub

    folder = hub.fetch_tokenizer_files(
        source.facts.id,
        revision=source.revision,
        offline=source.offline,
        gated=source.facts.gated or None,
        progress=progress,
    )
    return tokenizer_folder(folder, adapter)


def _gguf_on_disk(source: Source, progress: ProgressSink) -> Path:
    facts = source.facts
    if not is_on_disk(facts, source.revision):
        raise NotFoundError(
            f"The tokenizer of {facts.id} is in its GGUF file, which is not on disk.",
            f"Download the model first: localgemma models pull {facts.name}",
        )
    return fetch_model(source, progress, largest_update=0)


def fetch_assistant(source: Source, progress: ProgressSink, largest_update: int | None = None) -> Path | None:
    """The folder of the assistant model, fetched as by `fetch_model`; None without one."""
    if source.assistant is None:
        return None
    with naming_the_assistant():
        return fetch_model(source.assistant, progress, largest_update)
