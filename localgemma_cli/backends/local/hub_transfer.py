"""Asking the hub and receiving from it; raises what the client and its HTTP library raise.

The bytes are received here because the client (2.x) throws a broken download away, and a shard has gigabytes.
"""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there, but not marked as exported
    WeakFileLock,
    build_hf_headers,
    hf_raise_for_status,
)

from localgemma_cli.backends.local.hub_cache import COMMIT, Repo, RepoFile, is_whole, link, size_of
from localgemma_cli.backends.local.hub_errors import HTTP_ERROR, not_a_hub, not_a_name
from localgemma_cli.errors import NetworkError

_WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_RETRIES = 5
_RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Listing:
    commit: str
    gated: bool
    files: tuple[RepoFile, ...]


def list_files(repo: Repo, patience: float) -> Listing:
    """What the hub has of a model that would be loaded; waits `patience` seconds for it."""
    try:
        info = HfApi().model_info(
            repo.model_id,
            revision=repo.revision,
            files_metadata=True,
            timeout=patience,
            token=repo.token or False,
        )
        gated = repo.gated if info.gated is None else bool(info.gated)
        siblings = [s for s in info.siblings or () if _is_wanted(s.rfilename)]
        listing = Listing(info.sha or "", bool(gated), tuple(map(_file, siblings)))
    except HfHubHTTPError:
        raise
    except HFValidationError as error:
        raise not_a_name(repo) from error
    except (ValueError, KeyError, TypeError) as error:
        raise not_a_hub() from error
    if not COMMIT.fullmatch(listing.commit) or not all(_DIGEST.fullmatch(f.digest) for f in listing.files):
        raise not_a_hub()
    return listing


def _is_wanted(name: str) -> bool:
    """Weights, configuration and tokenizer at the top of a repository: what a loader opens, and no code."""
    return not re.search(r"[/\\]", name) and any(fnmatchcase(name, pattern) for pattern in _WANTED)


def _file(sibling: RepoSibling) -> RepoFile:
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if sibling.size is None or digest is None:
        raise ValueError("a listing without sizes")
    return RepoFile(sibling.rfilename, sibling.size, digest)


def download(repo: Repo, commit: str, file: RepoFile, report: Callable[[int], None]) -> None:
    """Bring one file into the snapshot; `report` is told how many of its bytes are here."""
    blob, partial = repo.blob(file), repo.partial(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    repo.lock(file).parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(repo.lock(file)):
        if not is_whole(blob, file):
            _receive(repo, commit, file, report)
            if _digest(partial, file) != file.digest:
                partial.unlink()
                raise NetworkError(f"{file.name} arrived damaged.", "Run the command again.")
            partial.replace(blob)
        if not is_whole(repo.snapshot(commit) / file.name, file):
            link(repo, commit, file)


def _receive(repo: Repo, commit: str, file: RepoFile, report: Callable[[int], None]) -> None:
    """Append to what is there until all of it is; only attempts that bring nothing count as failures."""
    url = hf_hub_url(repo.model_id, file.name, revision=commit)
    partial, failures = repo.partial(file), 0
    if size_of(partial) > file.size:
        partial.unlink()
    partial.touch()
    while (have := size_of(partial)) < file.size:
        trouble: Exception | None = None
        try:
            _stream(url, repo, partial, report)
        except HTTP_ERROR as error:
            trouble = error
        failures = 0 if size_of(partial) > have else failures + 1
        if trouble and (failures > _RETRIES or not _is_transient(trouble)):
            raise trouble
        if failures > _RETRIES:
            raise NetworkError(f"The hub sends no more of {file.name}.", "Run the command again later.")
        if trouble:
            time.sleep(_RETRY_SECONDS)


def _stream(url: str, repo: Repo, partial: Path, report: Callable[[int], None]) -> None:
    have = size_of(partial)
    # A compressed answer would have no length, and ranges of it no meaning.
    wanted = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    headers = build_hf_headers(token=repo.token or False, headers=wanted)
    patience = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with (
        get_session().stream("GET", url, headers=headers, timeout=patience) as response,
        partial.open("ab", buffering=0) as out,
    ):
        hf_raise_for_status(response)
        if have and response.status_code != 206:
            out.truncate(have := 0)
        for chunk in response.iter_bytes():
            out.write(chunk)
            have += len(chunk)
            report(have)


def _is_transient(error: Exception) -> bool:
    return not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500


def _digest(path: Path, file: RepoFile) -> str:
    is_large = len(file.digest) == 64
    state = hashlib.sha256() if is_large else hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: state).hexdigest()
