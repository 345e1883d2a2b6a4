"""GGUF models in the hub client's cache folder. Uses no network, and does not import the client."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localgemma_cli.environment import hub_cache
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.gguf_names import (
    GgufModel,
    GgufName,
    choose_gguf,
    gguf_models,
    is_model_file,
    short_name,
)


@dataclass(frozen=True)
class CachedGguf:
    """A complete model on disk: its name, and its files."""

    name: GgufName
    model: GgufModel
    files: tuple[Path, ...]


def list_cached_ggufs(repository: str, snapshot: Path | None = None) -> list[CachedGguf]:
    """The complete models of a repository: in one snapshot, else in all, the newest version of each."""
    paths: dict[str, Path] = {}
    for folder in [snapshot] if snapshot else _snapshots(repository):
        found = _files_in(folder)
        for model in gguf_models(dict.fromkeys(found, 0)):
            if model.is_complete and model.files[0] not in paths:
                paths |= {name: found[name] for name in model.files}
    models = gguf_models({name: path.stat().st_size for name, path in paths.items()})
    return [
        CachedGguf(
            GgufName(repository, short_name(model, models)), model, tuple(paths[name] for name in model.files)
        )
        for model in models
    ]


def cached_gguf(name: GgufName, snapshot: Path | None = None) -> CachedGguf | None:
    """The model of that name among `list_cached_ggufs`; None unless exactly one is meant."""
    cached = list_cached_ggufs(name.repository, snapshot)
    try:
        model = choose_gguf(name, [each.model for each in cached])
    except NotFoundError:
        return None
    return next(each for each in cached if each.model == model)


def delete_gguf(cached: CachedGguf) -> None:
    """Delete the model's files in every revision, and nothing else of its repository."""
    folder = _folder(cached.name.repository)
    pointers = [each for name in cached.model.files for each in folder.glob(f"snapshots/*/{name}")]
    blobs = {pointer.resolve() for pointer in pointers if pointer.is_symlink()}
    for pointer in pointers:
        pointer.unlink()
    kept = {each.resolve() for each in folder.glob("snapshots/*/**/*") if each.is_symlink()}
    for blob in blobs - kept:
        if blob.parent == (folder / "blobs").resolve():  # never outside of the cache
            blob.unlink(missing_ok=True)
    if not any(path.is_file() for part in ("snapshots/*/**/*", "blobs/*") for path in folder.glob(part)):
        shutil.rmtree(folder)


def _folder(repository: str) -> Path:
    return hub_cache(os.environ) / f"models--{repository.replace('/', '--')}"


def _snapshots(repository: str) -> list[Path]:
    """The main revision's first, then the newest."""
    folder, commit = _folder(repository), ""
    with suppress(OSError, UnicodeDecodeError):
        commit = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    newest = sorted(folder.glob("snapshots/*"), key=lambda each: each.stat().st_mtime, reverse=True)
    return sorted(newest, key=lambda each: each.name != commit)


def _files_in(snapshot: Path) -> dict[str, Path]:
    return {name: path for name, path in _named_files(snapshot) if is_model_file(name)}


def _named_files(snapshot: Path) -> Iterator[tuple[str, Path]]:
    for path in snapshot.rglob("*"):
        if path.is_file():
            yield path.relative_to(snapshot).as_posix(), path
