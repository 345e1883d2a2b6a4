"""GGUF models from the hub: the header before any download, and the files after checks."""

from dataclasses import dataclass, replace
from pathlib import Path

from localgemma_cli.errors import NotFoundError
from localgemma_cli.events import ProgressSink
from localgemma_cli.models.gguf_header import Gguf, join_pieces, read_gguf, read_gguf_beginning
from localgemma_cli.models.gguf_names import (
    GgufModel,
    GgufName,
    choose_gguf,
    describe_default,
    full_name,
    gguf_models,
)
from localgemma_cli.models.hub import errors as hub_errors
from localgemma_cli.models.hub.cache import (
    Repo,
    RepoFile,
    cached_snapshot,
    local_snapshot,
    missing_bytes,
    offline_by,
    record,
    size_of,
)
from localgemma_cli.models.hub.download import Listing, download_beginning, list_files
from localgemma_cli.models.hub.gguf_cache import CachedGguf, cached_gguf, list_cached_ggufs
from localgemma_cli.models.hub.transfer import (
    PATIENCE_SECONDS,
    PATIENCE_WITH_A_COPY_SECONDS,
    asked_repo,
    check_access,
    download_missing,
    keep_or_update,
    missing_files,
    open_hub,
)
from localgemma_cli.models.unsupported_formats import has_weights

_HEADER_BYTES = 8 << 20  # enough for most vocabularies of 262,144 tokens
_MOST_HEADER_BYTES = 64 << 20


@dataclass(frozen=True)
class HubGguf:
    """A model that was found: its full name, its header, and how it was chosen from several."""

    name: GgufName
    header: Gguf
    note: str = ""


def read_hub_gguf(asked: GgufName, *, revision: str | None, offline: bool) -> HubGguf:
    """The model's header, from disk if the model is complete there, else the beginning of its file.

    Raises NotFoundError, AccessError or NetworkError.
    """
    if cached := find_cached_gguf(asked, revision):
        name = GgufName(asked.repository, cached.model.files[0]) if asked.is_file else cached.name
        return HubGguf(name, read_gguf(cached.files[0]))
    if forbidden := offline_by(offline):
        if asked.wanted is None and (several := list_cached_ggufs(asked.repository)):
            choose_gguf(asked, [each.model for each in several])  # raises, and lists them
        raise hub_errors.not_on_disk(asked.id, forbidden)
    with open_hub(asked_repo(asked.repository, revision)) as repo:
        listing = list_files(repo, PATIENCE_SECONDS)
        model = _choose(asked, listing)
        check_access(repo, listing)
        models = _models(listing)
        headers = [_read_header(repo, listing.commit, file) for file in _files_of(model, listing)]
        note = describe_default(asked, model, models)
        return HubGguf(full_name(asked, model, models), join_pieces(headers), note)


def fetch_gguf(
    name: GgufName,
    *,
    revision: str | None,
    offline: bool,
    gated: bool | None = None,
    largest_update: int | None = None,
    progress: ProgressSink,
) -> Path:
    """The model's file, or the first of its pieces, downloaded as `fetch_snapshot` downloads."""
    cached = find_cached_gguf(name, revision)
    local = cached.files[0] if cached else None
    if local is None and (forbidden := offline_by(offline)):
        raise hub_errors.not_on_disk(name.id, forbidden)
    return keep_or_update(
        name.repository,
        local,
        lambda repo: _update_gguf(repo, name, local, largest_update, progress),
        revision=revision,
        offline=offline,
        gated=gated,
        progress=progress,
    )


def gguf_bytes_to_fetch(name: GgufName, *, revision: str | None, gated: bool | None) -> int:
    """Bytes that `fetch_gguf` would download of a model that is not on disk; raises as it does."""
    with open_hub(asked_repo(name.repository, revision, gated)) as repo:
        listing = list_files(repo, PATIENCE_SECONDS)
        wanted = _wanted(_choose(name, listing), listing)
        return sum(missing_bytes(repo, file) for file in missing_files(repo, wanted))


def find_cached_gguf(name: GgufName, revision: str | None) -> CachedGguf | None:
    """The complete model on disk, in this revision if one is given; None without one."""
    if revision is None:
        return cached_gguf(name)
    snapshot = local_snapshot(asked_repo(name.repository, revision))
    return cached_gguf(name, snapshot) if snapshot else None


def has_only_ggufs(repository: str, revision: str | None, offline: bool) -> bool:
    """Whether GGUF models are all that is on disk of a repository; uses no network.

    A config.json beside them is a sign of other weights on the hub, which then are what the name means.
    """
    if cached_snapshot(repository, revision) is not None:
        return False
    snapshot = local_snapshot(asked_repo(repository, revision))
    if offline_by(offline):
        return bool(list_cached_ggufs(repository, snapshot if revision else None))
    has_config = snapshot is not None and (snapshot / "config.json").is_file()
    return not has_config and find_cached_gguf(GgufName(repository), revision) is not None


def _update_gguf(
    repo: Repo, name: GgufName, local: Path | None, largest: int | None, progress: ProgressSink
) -> Path:
    listing = list_files(repo, PATIENCE_WITH_A_COPY_SECONDS if local else PATIENCE_SECONDS)
    model = _choose(name, listing)
    if not download_missing(repo, _wanted(model, listing), progress, largest if local else None) and local:
        return local
    if cached_snapshot(repo.model_id, repo.revision) is None:  # that copy of safetensors stays the revision's
        record(repo, listing.commit)
    return repo.snapshot(listing.commit) / model.files[0]


def _wanted(model: GgufModel, listing: Listing) -> Listing:
    """The listing with the model's files only.

    Beside weights of another format also config.json, by which `-m REPO` then means those.
    """
    files = _files_of(model, listing)
    if has_weights(listing.names):
        files = (*(file for file in listing.files if file.name == "config.json"), *files)
    return replace(listing, files=files)


def _choose(name: GgufName, listing: Listing) -> GgufModel:
    return choose_gguf(name, _models(listing), has_others=has_weights(listing.names))


def _models(listing: Listing) -> list[GgufModel]:
    return gguf_models({file.name: file.size for file in listing.ggufs})


def _files_of(model: GgufModel, listing: Listing) -> tuple[RepoFile, ...]:
    by_name = {file.name: file for file in listing.ggufs}
    return tuple(by_name[name] for name in model.files)


def _read_header(repo: Repo, commit: str, file: RepoFile) -> Gguf:
    begun = size_of(repo.partial(file))
    try:
        return _download_header(repo, commit, file)
    except NotFoundError:
        if not begun:
            raise
    repo.partial(file).unlink(missing_ok=True)  # an interrupted download of something else
    return _download_header(repo, commit, file)


def _download_header(repo: Repo, commit: str, file: RepoFile) -> Gguf:
    size, name = _HEADER_BYTES, f"{repo.model_id}:{file.name}"
    while size <= _MOST_HEADER_BYTES:
        path = download_beginning(repo, commit, file, min(size, file.size))
        if header := read_gguf_beginning(path, file.size, name):
            return header
        size *= 2
    raise NotFoundError(
        f"The header of {name} is larger than that of any Gemma.", "Use another file of the repository."
    )
