"""Listing a repository and downloading its files; raises what the client and its HTTP library raise.

The client (2.x) discards an interrupted download, and a shard has gigabytes: here it is resumed. The server
may not be a hub: every answer is limited in bytes and in time.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there, but not marked as exported
    WeakFileLock,
    build_hf_headers,
    hf_raise_for_status,
    validate_repo_id,
)

from localgemma_cli.errors import NetworkError
from localgemma_cli.models.hub.cache import (
    COMMIT,
    Repo,
    RepoFile,
    discard_foreign,
    is_whole,
    link,
    make_folder,
    open_partial,
    size_of,
)
from localgemma_cli.models.hub.errors import HTTP_ERROR, no_answer, not_a_hub, not_a_name
from localgemma_cli.text import parse_json

_WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
_NAME = re.compile(r"[A-Za-z0-9_][\w.+ -]{0,150}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)\b.*", re.IGNORECASE)  # names of devices on Windows
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LARGEST = 2**63  # bytes; larger than any disk
_LONGEST_LISTING = 32 * 2**20  # bytes
_LONGEST_REFUSAL = 2**16  # bytes
_RETRIES = 5
_RETRY_SECONDS = 1.0
_STEP = 2**20  # bytes; an attempt that downloads fewer is a failure
_SLOWEST = 1024  # bytes per second


@dataclass(frozen=True)
class Listing:
    """What a revision has: `files` that a loader of safetensors needs, `ggufs`, also those in folders.

    `names`: of everything at the top of the repository, and of `ggufs`.
    """

    commit: str
    gated: bool
    files: tuple[RepoFile, ...]
    names: tuple[str, ...] = ()
    ggufs: tuple[RepoFile, ...] = ()


def list_files(repo: Repo, patience: float) -> Listing:
    """The files of a model that a loader needs; waits at most `patience` seconds for them."""
    try:
        validate_repo_id(repo.model_id)
    except HFValidationError as error:
        raise not_a_name(repo) from error
    path = f"api/models/{repo.model_id}/revision/{quote(repo.revision, safe='')}?blobs=true"
    with _answer(repo, f"{constants.ENDPOINT}/{path}", {}, patience) as response:
        body = _read(response, _LONGEST_LISTING, patience)
    try:
        return _listing(parse_json(body), repo)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise not_a_hub() from error


def _listing(info: Any, repo: Repo) -> Listing:
    """Raises ValueError, KeyError, TypeError or AttributeError for JSON of another form."""
    listed = info.get("siblings") or ()
    siblings = [each for each in listed if _is_wanted(each["rfilename"])]
    files = {file.name: file for file in map(_file, siblings)}
    if not COMMIT.fullmatch(info["sha"]):
        raise ValueError("no commit")
    gated = repo.gated if info.get("gated") is None else bool(info["gated"])
    top = tuple(each["rfilename"] for each in listed if not re.search(r"[/\\]", each["rfilename"]))
    ggufs = {file.name: file for file in map(_file, (s for s in listed if _is_gguf(s["rfilename"])))}
    names = tuple(dict.fromkeys((*top, *ggufs)))
    return Listing(info["sha"], bool(gated), tuple(files.values()), names, tuple(ggufs.values()))


def _is_wanted(name: str) -> bool:
    """Whether it is a top-level file of weights, configuration or tokenizer; never code."""
    return _is_plain(name) and any(fnmatchcase(name, pattern) for pattern in _WANTED)


def _is_gguf(name: str) -> bool:
    """Whether it is a GGUF file, also in a folder of the repository."""
    return name.lower().endswith(".gguf") and all(map(_is_plain, name.split("/")))


def _is_plain(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and not _RESERVED.fullmatch(name)


def _file(sibling: Mapping[str, Any]) -> RepoFile:
    digest = sibling["lfs"]["sha256"] if sibling.get("lfs") else sibling["blobId"]
    size = sibling["size"]
    is_size = isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= _LARGEST
    if not is_size or not _DIGEST.fullmatch(digest):
        raise ValueError("no size or no digest")
    return RepoFile(sibling["rfilename"], size, digest)


def download(repo: Repo, commit: str, file: RepoFile, report: Callable[[int], None]) -> None:
    """Download one file into the snapshot; `report` gets the number of its bytes on disk."""
    blob, partial = repo.blob(file), repo.partial(file)
    make_folder(blob.parent)
    make_folder(repo.lock(file).parent)
    with WeakFileLock(repo.lock(file)):
        if not is_whole(blob, file):
            _receive(repo, commit, file, file.size, report)
            if _digest(partial, file) != file.digest:
                partial.unlink()
                raise NetworkError(f"{file.name} was damaged during the download.", "Run the command again.")
            partial.replace(blob)
        if not is_whole(repo.snapshot(commit) / file.name, file):
            link(repo, commit, file)


def download_beginning(repo: Repo, commit: str, file: RepoFile, size: int) -> Path:
    """A file with at least the first `size` bytes of `file`; `download` continues from them."""
    blob, partial = repo.blob(file), repo.partial(file)
    if is_whole(blob, file):
        return blob
    if size_of(partial) < size:
        make_folder(blob.parent)
        make_folder(repo.lock(file).parent)
        with WeakFileLock(repo.lock(file)):
            _receive(repo, commit, file, size, lambda _: None)
    return partial


def _receive(repo: Repo, commit: str, file: RepoFile, size: int, report: Callable[[int], None]) -> None:
    """Append to the partial file until it has `size` bytes; attempts that add little to it are failures.

    Bytes that an attempt discards and downloads again add nothing.
    """
    url = hf_hub_url(repo.model_id, file.name, revision=commit)
    partial, failures = repo.partial(file), 0
    discard_foreign(partial)
    if size_of(partial) > file.size:
        partial.unlink()
    open_partial(partial).close()
    reached, step = size_of(partial), max(_STEP, file.size // 1000)
    while size_of(partial) < size:
        trouble: Exception | None = None
        try:
            _stream(url, repo, partial, size, file, report)
        except (HTTP_ERROR, _TooSlow) as error:
            trouble = error
        have = size_of(partial)
        failures = 0 if have >= min(reached + step, size) else failures + 1
        reached = max(reached, have) if failures == 0 else reached
        if trouble and not _is_transient(trouble):
            raise trouble
        if failures > _RETRIES:
            if isinstance(trouble, HTTP_ERROR):
                raise trouble
            how = "is too slow" if trouble else "stopped early"
            raise NetworkError(f"Download of {file.name} {how}.", "Run the command again later.")
        if trouble:
            time.sleep(_RETRY_SECONDS)


class _TooSlow(Exception):
    """A connection that is open but almost idle."""


def _stream(
    url: str, repo: Repo, partial: Path, size: int, file: RepoFile, report: Callable[[int], None]
) -> None:
    have, patience = size_of(partial), constants.HF_HUB_DOWNLOAD_TIMEOUT
    end = "" if size == file.size else size - 1
    wanted = {"Range": f"bytes={have}-{end}"} if have or size < file.size else {}
    with _answer(repo, url, wanted, patience) as response, open_partial(partial) as out:
        if wanted and not _resumes_at(response, have):
            out.truncate(have := 0)
            if response.status_code == 206:  # another range than requested
                return
        for chunk in _chunks(response, patience):
            out.write(chunk[: size - have])
            have = min(have + len(chunk), size)
            report(have)
            if have == size:  # ignore anything beyond it
                return


def _resumes_at(response: Any, have: int) -> bool:
    begins = re.match(r"bytes (\d{1,18})-", response.headers.get("content-range", ""))
    return response.status_code == 206 and begins is not None and int(begins[1]) == have


@contextmanager
def _answer(repo: Repo, url: str, headers: dict[str, str], patience: float) -> Iterator[Any]:
    """The response, its body unread; raises HfHubHTTPError for an error status."""
    # A compressed answer has no known length, and its ranges are not those of the file.
    sent = build_hf_headers(token=repo.token or False, headers={"Accept-Encoding": "identity", **headers})
    client = get_session()
    request = client.build_request("GET", url, headers=sent, timeout=patience)
    response = _within(3 * patience, lambda: client.send(request, stream=True))
    try:
        if response.status_code >= 400:
            body = _read(response, _LONGEST_REFUSAL, patience)
            kept = {k: v for k, v in response.headers.items() if k.lower() not in _ABOUT_THE_BODY}
            hf_raise_for_status(
                type(response)(response.status_code, headers=kept, content=body, request=response.request)
            )
        if response.headers.get("content-encoding", "identity") != "identity":
            raise not_a_hub()
        yield response
    finally:
        response.close()


_ABOUT_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")


def _within(seconds: float, action: Callable[[], Any]) -> Any:
    """The result of `action` in a thread, abandoned after `seconds`: headers can arrive slowly."""
    done: Queue[tuple[Any, Exception | None]] = Queue()

    def run() -> None:
        try:
            done.put((action(), None))
        except Exception as error:  # raised in the waiting thread
            done.put((None, error))

    Thread(target=run, name="hub", daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except Empty:
        raise no_answer() from None
    if error is not None:
        raise error
    return result


def _read(response: Any, most: int, patience: float) -> bytes:
    """The body, at most `most` bytes of it."""
    body = bytearray()
    try:
        for chunk in _chunks(response, patience):
            body += chunk
            if len(body) > most:
                break
    except _TooSlow:
        raise no_answer() from None
    return bytes(body[:most])


def _chunks(response: Any, patience: float) -> Iterator[bytes]:
    """The body in chunks; _TooSlow if `patience` seconds bring almost nothing."""
    since, came = time.monotonic(), 0
    for chunk in response.iter_raw():
        yield chunk
        came += len(chunk)
        if (took := time.monotonic() - since) > patience:
            if came < _SLOWEST * took:
                raise _TooSlow
            since, came = time.monotonic(), 0


def _is_transient(error: Exception) -> bool:
    return not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500


def _digest(path: Path, file: RepoFile) -> str:
    is_large = len(file.digest) == 64
    state = hashlib.sha256() if is_large else hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: state).hexdigest()
