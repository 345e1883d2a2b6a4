"""Models from the hub: read from the cache, or downloaded after checks, and resumed.

The files are kept in the hub client's own cache folder, where other tools find them.
"""

import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from huggingface_hub import constants, get_token

from localgemma_cli.documents import failure_reason, read_json_object
from localgemma_cli.errors import LocalGemmaError, NotFoundError
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.hub import errors as hub_errors
from localgemma_cli.models.hub.cache import (
    COMMIT,
    Repo,
    RepoFile,
    cached_snapshot,
    is_revision,
    is_whole,
    local_snapshot,
    missing_bytes,
    missing_in,
    offline_by,
    record,
)
from localgemma_cli.models.hub.download import Listing, download, list_files
from localgemma_cli.models.unsupported_formats import is_adapter, refuse_unsupported_formats
from localgemma_cli.units import format_bytes

_ADAPTER = "adapter_config.json"
_PATIENCE_SECONDS = 10.0
_PATIENCE_WITH_A_COPY_SECONDS = 4.0
_PROGRESS_SECONDS = 0.1
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".gguf")


def fetch_config(
    model_id: str, *, revision: str | None, offline: bool, name: str = "config.json"
) -> dict[str, object]:
    """The file `name` of a hub model, from disk if the model is complete; raises as `fetch_snapshot` does.

    The adapter_config.json, where a repository has that and no config.json.
    """
    folder = local_snapshot(_asked(model_id, revision))
    if folder is None or missing_in(folder):
        if not offline_by(offline):
            with _hub(_asked(model_id, revision)) as repo:
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
    folder = local_snapshot(_asked(model_id, revision))
    if folder is not None and all((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        return folder
    if offline_by(offline):
        raise hub_errors.not_on_disk(model_id, offline_by(offline))
    with _hub(_asked(model_id, revision, gated)) as repo:
        listing = list_files(repo, _PATIENCE_SECONDS)
        _check_tokenizer(repo, listing)
        files = tuple(file for file in listing.files if not file.name.endswith(_WEIGHTS))
        small = Listing(listing.commit, listing.gated, files)
        folder = repo.snapshot(listing.commit)
        _check_access(repo, listing)
        _download_all(repo, small, [f for f in files if not is_whole(folder / f.name, f)], progress)
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
    if local is not None and (offline_by(offline) or COMMIT.fullmatch(revision or "")):
        return local
    if offline_by(offline):
        raise hub_errors.not_on_disk(model_id, offline_by(offline))
    try:
        with _hub(_asked(model_id, revision, gated)) as repo:
            return _update(repo, local, largest_update, progress)
    except LocalGemmaError as error:
        if local is None:
            raise
        progress(LoadProgress(f"using the copy on disk ({error.message.rstrip('.')})"))
        return local


def _asked(model_id: str, revision: str | None, gated: bool | None = None) -> Repo:
    repo = Repo(model_id, revision or constants.DEFAULT_REVISION, gated)
    if not is_revision(repo.revision):  # it becomes a path
        raise hub_errors.not_a_revision(repo)
    return repo


@contextmanager
def _hub(asked: Repo) -> Iterator[Repo]:
    """The model with the user's token; inside, the client logs nothing and its errors are translated."""
    with hub_errors.quiet_client():
        with hub_errors.translate_errors(asked):
            token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        if token and not re.fullmatch(r"[!-~]+", token):
            raise hub_errors.bad_token()
        repo = replace(asked, token=token)
        with hub_errors.translate_errors(repo):
            yield repo


def bytes_to_fetch(model_id: str, *, revision: str | None, gated: bool | None) -> int:
    """Bytes that `fetch_snapshot` would download of a model that is incomplete on disk; raises as it does."""
    with _hub(_asked(model_id, revision, gated)) as repo:
        listing = list_files(repo, _PATIENCE_SECONDS)
        return sum(missing_bytes(repo, file) for file in _missing(repo, listing))


def _missing(repo: Repo, listing: Listing) -> list[RepoFile]:
    """The files that are not on disk yet; raises if they cannot be loaded, stored or accessed."""
    _check_loadable(repo, listing)
    folder = repo.snapshot(listing.commit)
    missing = [file for file in listing.files if not is_whole(folder / file.name, file)]
    if missing:
        _check_disk(repo, missing)
        _check_access(repo, listing)
    return missing


def _update(repo: Repo, copy: Path | None, largest: int | None, progress: ProgressSink) -> Path:
    """Download what has changed in the revision, or keep the copy if that is more than `largest` bytes."""
    listing = list_files(repo, _PATIENCE_WITH_A_COPY_SECONDS if copy else _PATIENCE_SECONDS)
    missing = _missing(repo, listing)
    folder = repo.snapshot(listing.commit)
    if missing:
        size = sum(missing_bytes(repo, file) for file in missing)
        if copy and largest is not None and size > largest:
            newer = f"{format_bytes(size)}; localgemma models pull downloads them"
            progress(LoadProgress(f"using the copy on disk (newer files are on the hub: {newer})"))
            return copy
        _download_all(repo, listing, missing, progress)
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


def _check_disk(repo: Repo, missing: list[RepoFile]) -> None:
    needed = sum(missing_bytes(repo, file) for file in missing)
    cache = repo.folder.parent
    free = shutil.disk_usage(next(p for p in (cache, *cache.absolute().parents) if p.exists())).free
    if needed > free:
        raise hub_errors.no_space(repo, needed, free)


def _check_access(repo: Repo, listing: Listing) -> None:
    if listing.gated and not repo.token:
        raise hub_errors.needs_token(repo)


def _download_all(repo: Repo, listing: Listing, missing: list[RepoFile], progress: ProgressSink) -> None:
    """Download small files first: errors show before the weights, and the weights complete the snapshot."""
    total = sum(file.size for file in listing.files)
    done = total - sum(file.size for file in missing)
    meter = _Meter(progress, total)
    for file in sorted(missing, key=lambda file: file.size):
        download(repo, listing.commit, file, partial(meter.show, done))
        done += file.size
    meter.finish()


class _Meter:
    """Reports downloaded bytes about ten times a second, never fewer than before."""

    def __init__(self, progress: ProgressSink, total: int) -> None:
        self._progress = progress
        self._total = total
        self._reported = -1
        self._reported_at = 0.0

    def show(self, before: int, of_this_file: int) -> None:
        now = time.monotonic()
        if before + of_this_file > self._reported and now - self._reported_at >= _PROGRESS_SECONDS:
            self._report(before + of_this_file)
            self._reported_at = now

    def finish(self) -> None:
        if self._reported < self._total:
            self._report(self._total)

    def _report(self, done: int) -> None:
        self._reported = done
        self._progress(LoadProgress("downloading", done, self._total))


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
    listing = list_files(repo, _PATIENCE_SECONDS)
    by_name = {file.name: file for file in listing.files}
    refuse_unsupported_formats(listing.names, repo.model_id)
    found = _config_among(by_name, name)
    if found is None:
        raise _without(repo.model_id, name)
    config = by_name[found]
    _check_access(repo, listing)
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
