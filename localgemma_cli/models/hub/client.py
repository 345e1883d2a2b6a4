"""Models from the hub: read from the cache, or downloaded after checks, and resumed.

The files are kept in the hub client's own cache folder, where other tools find them.
"""

from collections.abc import Collection
from pathlib import Path

from localgemma_cli.documents import failure_reason, read_json_object
from localgemma_cli.errors import NotFoundError
from localgemma_cli.events import ProgressSink
from localgemma_cli.models.hub import errors as hub_errors
from localgemma_cli.models.hub.cache import (
    Repo,
    cached_snapshot,
    is_whole,
    local_snapshot,
    missing_bytes,
    missing_in,
    offline_by,
    record,
)
from localgemma_cli.models.hub.download import Listing, download, list_files
from localgemma_cli.models.hub.transfer import (
    PATIENCE_SECONDS,
    PATIENCE_WITH_A_COPY_SECONDS,
    asked_repo,
    check_access,
    download_all,
    download_missing,
    keep_or_update,
    missing_files,
    open_hub,
)
from localgemma_cli.models.unsupported_formats import is_adapter, refuse_unsupported_formats

_ADAPTER = "adapter_config.json"
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".gguf")


def fetch_config(
    model_id: str, *, revision: str | None, offline: bool, name: str = "config.json"
) -> dict[str, object]:
    """The file `name` of a hub model, from disk if the model is complete; raises as `fetch_snapshot` does.

    The adapter_config.json, where a repository has that and no config.json.
    """
    folder = local_snapshot(asked_repo(model_id, revision))
    if folder is None or missing_in(folder):
        if not offline_by(offline):
            with open_hub(asked_repo(model_id, revision)) as repo:
                return _parse(_download_config(repo, name), model_id)
        if folder is None or _config_in(folder, name) is None:
            raise hub_errors.not_on_disk(model_id, offline_by(offline))
    path = _config_in(folder, name)
    if path is None:
        raise _without(model_id, name)
    return _parse(path, model_id)


def fetch_tokenizer_files(
    model_id: str,
    *,
    revision: str | None,
    offline: bool,
    gated: bool | None = None,
    progress: ProgressSink,
) -> Path:
    """A folder with at least config.json and the tokenizer, downloaded if they are not on disk."""
    folder = local_snapshot(asked_repo(model_id, revision))
    if folder is not None and all((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        return folder
    if offline_by(offline):
        raise hub_errors.not_on_disk(model_id, offline_by(offline))
    with open_hub(asked_repo(model_id, revision, gated)) as repo:
        listing = list_files(repo, PATIENCE_SECONDS)
        _check_tokenizer(repo, listing)
        files = tuple(file for file in listing.files if not file.name.endswith(_WEIGHTS))
        small = Listing(listing.commit, listing.gated, files)
        folder = repo.snapshot(listing.commit)
        check_access(repo, listing)
        download_all(repo, small, [f for f in files if not is_whole(folder / f.name, f)], progress)
        record(repo, listing.commit)
        return folder


def fetch_snapshot(
    model_id: str,
    *,
    revision: str | None,
    offline: bool,
    gated: bool | None = None,
    largest_update: int | None = None,
    progress: ProgressSink,
) -> Path:
    """The folder of a complete snapshot, downloaded or resumed if needed.

    A complete copy on disk is updated if that downloads at most `largest_update` bytes.
    Raises DiskSpaceError, AccessError, NotFoundError or NetworkError, but not if a complete copy is on disk.
    """
    local = cached_snapshot(model_id, revision)
    if local is None and (forbidden := offline_by(offline)):
        raise hub_errors.not_on_disk(model_id, forbidden)
    return keep_or_update(
        model_id,
        local,
        lambda repo: _update(repo, local, largest_update, progress),
        revision=revision,
        offline=offline,
        gated=gated,
        progress=progress,
    )


def bytes_to_fetch(model_id: str, *, revision: str | None, gated: bool | None) -> int:
    """Bytes that `fetch_snapshot` would download of a model that is incomplete on disk; raises as it does."""
    with open_hub(asked_repo(model_id, revision, gated)) as repo:
        listing = list_files(repo, PATIENCE_SECONDS)
        _check_loadable(repo, listing)
        return sum(missing_bytes(repo, file) for file in missing_files(repo, listing))


def _update(repo: Repo, copy: Path | None, largest: int | None, progress: ProgressSink) -> Path:
    """Download what has changed in the revision, or keep the copy if that is more than `largest` bytes."""
    listing = list_files(repo, PATIENCE_WITH_A_COPY_SECONDS if copy else PATIENCE_SECONDS)
    _check_loadable(repo, listing)
    if not download_missing(repo, listing, progress, largest if copy else None) and copy:
        return copy
    folder = repo.snapshot(listing.commit)
    if lost := missing_in(folder):
        raise NotFoundError(
            f"{repo.model_id} is incomplete on the hub: no {hub_errors.quote_text(lost[0], repo)}.",
            "Use another model or --revision.",
        )
    record(repo, listing.commit)
    return folder


def _check_loadable(repo: Repo, listing: Listing) -> None:
    refuse_unsupported_formats(listing.names, repo.model_id)
    names = {file.name for file in listing.files}
    if not any(name.endswith(".safetensors") for name in names):
        raise NotFoundError(
            f"{repo.model_id} has no safetensors weights, the only supported format.",
            "Use a model or a --revision with .safetensors files.",
        )
    if not is_adapter(names):
        _check_tokenizer(repo, listing)


def _check_tokenizer(repo: Repo, listing: Listing) -> None:
    names = {file.name for file in listing.files}
    if lost := [name for name in ("config.json", "tokenizer.json") if name not in names]:
        only = (
            " but only tokenizer.model" if lost == ["tokenizer.json"] and "tokenizer.model" in names else ""
        )
        raise NotFoundError(
            f"{repo.model_id} has no {lost[0]}{only if lost == ['tokenizer.json'] else ''}.",
            "Use a model in the transformers format, or another --revision.",
        )


def _config_in(folder: Path, name: str) -> Path | None:
    names = {each.name for each in folder.iterdir()} if folder.is_dir() else set()
    found = _config_among(names, name)
    return folder / found if found else None


def _config_among(names: Collection[str], name: str) -> str | None:
    """The adapter's config unless the model is complete: trainers keep the base's config.json beside it."""
    if is_adapter(names):
        name = _ADAPTER
    return next((each for each in (name, _ADAPTER) if each in names), None)


def _without(model_id: str, name: str) -> NotFoundError:
    return NotFoundError(f"{model_id} has no {name}.", "Use a model in the transformers format.")


def _download_config(repo: Repo, name: str) -> Path:
    listing = list_files(repo, PATIENCE_SECONDS)
    by_name = {file.name: file for file in listing.files}
    refuse_unsupported_formats(listing.names, repo.model_id)
    found = _config_among(by_name, name)
    if found is None:
        raise _without(repo.model_id, name)
    config = by_name[found]
    check_access(repo, listing)
    path = repo.snapshot(listing.commit) / config.name
    if not is_whole(path, config):
        download(repo, listing.commit, config, lambda _: None)
    record(repo, listing.commit)
    return path


def _parse(path: Path, model_id: str) -> dict[str, object]:
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"Cannot read {path.name} of {model_id}: {failure_reason(error)}.",
            "Use another model or --revision.",
        ) from None
