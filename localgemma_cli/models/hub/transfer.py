"""Connect to the hub with the user's token, and download the missing files of a listing after checks."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from huggingface_hub import constants, get_token

from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.hub import errors as hub_errors
from localgemma_cli.models.hub.cache import (
    COMMIT,
    Repo,
    RepoFile,
    is_revision,
    is_whole,
    missing_bytes,
    offline_by,
)
from localgemma_cli.models.hub.download import Listing, download
from localgemma_cli.units import format_bytes

PATIENCE_SECONDS = 10.0
PATIENCE_WITH_A_COPY_SECONDS = 4.0
_PROGRESS_SECONDS = 0.1


def asked_repo(model_id: str, revision: str | None, gated: bool | None = None) -> Repo:
    """The model and revision; UsageError for an invalid revision."""
    repo = Repo(model_id, revision or constants.DEFAULT_REVISION, gated)
    if not is_revision(repo.revision):  # it becomes a path
        raise hub_errors.not_a_revision(repo)
    return repo


@contextmanager
def open_hub(asked: Repo) -> Iterator[Repo]:
    """The model with the user's token; inside, the client logs nothing and its errors are translated."""
    with hub_errors.quiet_client():
        with hub_errors.translate_errors(asked):
            token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        if token and not re.fullmatch(r"[!-~]+", token):
            raise hub_errors.bad_token()
        repo = replace(asked, token=token)
        with hub_errors.translate_errors(repo):
            yield repo


def keep_or_update(
    model_id: str,
    copy: Path | None,
    update: Callable[[Repo], Path],
    *,
    revision: str | None,
    offline: bool,
    gated: bool | None,
    progress: ProgressSink,
) -> Path:
    """The `copy` on disk where the hub is not to be asked or cannot be used, else what `update` returns.

    Without a copy it raises what `update` raises.
    """
    if copy is not None and (offline_by(offline) or COMMIT.fullmatch(revision or "")):
        return copy
    try:
        with open_hub(asked_repo(model_id, revision, gated)) as repo:
            return update(repo)
    except LocalGemmaError as error:
        if copy is None:
            raise
        progress(LoadProgress(f"using the copy on disk ({error.message.rstrip('.')})"))
        return copy


def missing_files(repo: Repo, listing: Listing) -> list[RepoFile]:
    """The files that are not on disk yet; raises if they cannot be stored or accessed."""
    folder = repo.snapshot(listing.commit)
    missing = [file for file in listing.files if not is_whole(folder / file.name, file)]
    if missing:
        _check_disk(repo, missing)
        check_access(repo, listing)
    return missing


def download_missing(
    repo: Repo, listing: Listing, progress: ProgressSink, largest_update: int | None = None
) -> bool:
    """Whether the files are now in the snapshot; False if that downloads more than `largest_update` bytes."""
    missing = missing_files(repo, listing)
    size = sum(missing_bytes(repo, file) for file in missing)
    if largest_update is not None and size > largest_update:
        newer = f"{format_bytes(size)}; localgemma models pull downloads them"
        progress(LoadProgress(f"using the copy on disk (newer files are on the hub: {newer})"))
        return False
    if missing:
        download_all(repo, listing, missing, progress)
    return True


def _check_disk(repo: Repo, missing: list[RepoFile]) -> None:
    needed = sum(missing_bytes(repo, file) for file in missing)
    cache = repo.folder.parent
    free = shutil.disk_usage(next(p for p in (cache, *cache.absolute().parents) if p.exists())).free
    if needed > free:
        raise hub_errors.no_space(repo, needed, free)


def check_access(repo: Repo, listing: Listing) -> None:
    if listing.gated and not repo.token:
        raise hub_errors.needs_token(repo)


def download_all(repo: Repo, listing: Listing, missing: list[RepoFile], progress: ProgressSink) -> None:
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
