"""Quantized copies of weights, kept in the cache folder: one folder each, written whole or not at all.

    <cache>/weights/<name>-<digest>/manifest.json
                                    weights.safetensors

The digest names what the copy is of (repository and commit, or folder; format); the manifest says what it
was made from and by, its size and its sha256. A copy whose manifest says otherwise than what is wanted now is
made again. The size is compared at every load; the sha256 where the file was touched since it was written
(its modification time is in the manifest too) and where a user asks for it: at each load, it would cost more
than the load itself.
"""

import hashlib
import json
import mmap
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from localgemma_cli.documents import read_object
from localgemma_cli.environment import cache_folder, make_private, private_opener
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.hub.cache import COMMIT, Repo
from localgemma_cli.models.safetensors_file import map_file
from localgemma_cli.units import format_bytes

LAYOUT_VERSION = 1  # of the files' contents; what an older program wrote is made again
_MANIFEST, _WEIGHTS = "manifest.json", "weights.safetensors"
_MARGIN = 256_000_000  # bytes of disk that are left to others
_DIRTY_LIMIT = 1 << 28  # bytes between two flushes: the last one must not wait for a whole file


@dataclass(frozen=True)
class Wanted:
    """A copy as it has to be now; `source` and `form` say which copy, the rest whether it is still right.

    `files` are those it is made from, as (name, bytes, modified); `header` and `size` those of its own file.
    """

    model: str
    source: str
    form: Mapping[str, str]
    files: tuple[tuple[str, int, int], ...]
    header: bytes
    size: int

    @property
    def key(self) -> str:
        """A folder's name."""
        digest = hashlib.sha256(json.dumps([self.source, dict(self.form)], sort_keys=True).encode())
        name = re.sub(r"[^\w.-]+", "-", self.model).strip("-.")[-60:]
        return f"{name or 'model'}-{digest.hexdigest()[:12]}"

    def to_dict(self) -> dict[str, object]:
        return {
            "model": self.model,
            "source": self.source,
            "form": dict(self.form),
            "files": [list(file) for file in self.files],
            "header": hashlib.sha256(self.header).hexdigest(),
            "bytes": self.size,
            "versions": _versions(),
        }


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("bitsandbytes", "torch")}
    return {"layout": str(LAYOUT_VERSION), **found}


def source_of(model_id: str, folder: Path) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """What `folder` is, and (name, bytes, modified) of its weights; a hub commit's files never change."""
    commit = folder.name
    from_hub = COMMIT.fullmatch(commit) and Repo(model_id, commit).snapshot(commit) == folder
    weights = sorted((*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")))
    stats = [(path.name, path.stat()) for path in weights]
    files = tuple((name, stat.st_size, 0 if from_hub else stat.st_mtime_ns) for name, stat in stats)
    return f"{model_id}@{commit}" if from_hub else str(folder.resolve()), files


@dataclass(frozen=True)
class Kept:
    """A copy on disk, its size in bytes; `problem` says what is wrong with it, if anything is."""

    folder: Path
    model: str
    source: str
    form: Mapping[str, str]
    size: int
    problem: str = ""


def weights_folder() -> Path:
    return cache_folder() / "weights"


def kept_copies(*, verify: bool = False) -> tuple[Kept, ...]:
    """Every copy on disk, broken ones too; with `verify` each is read whole and compared with its sha256."""
    root = weights_folder()
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return tuple(_kept(each, verify) for each in folders if each.is_dir() and not each.name.startswith("."))


def _kept(folder: Path, verify: bool) -> Kept:
    try:
        manifest = _manifest(folder)
        what = manifest["copy"]
        problem = _damage(folder, manifest, verify)
        form = {str(key): str(value) for key, value in what["form"].items()}
        return Kept(folder, str(what["model"]), str(what["source"]), form, _size_of(folder), problem)
    except (OSError, ValueError, KeyError, AttributeError):  # whatever it holds, it is not what was written
        return Kept(folder, folder.name, "?", {}, _size_of(folder), "the manifest cannot be read")


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def remove(kept: Kept) -> None:
    _discard(kept.folder)


def open_or_make(
    wanted: Wanted, make: Callable[["HashingFile"], None], progress: ProgressSink
) -> mmap.mmap | None:
    """The copy, mapped; made by `make` where it is not there or not right. None where it cannot be kept.

    Whatever `make` raises besides an OSError is raised on, and leaves no copy behind.
    """
    try:
        folder = weights_folder() / wanted.key
        if _fault(folder, wanted) is None:
            with suppress(OSError, ValueError):  # another process may just have replaced it
                return map_file(folder / _WEIGHTS)
        with _locked(folder, progress):
            fault = _fault(folder, wanted)
            if fault is not None:
                _make(folder, wanted, fault, make, progress)
            return map_file(folder / _WEIGHTS)
    except OSError as reason:
        progress(LoadProgress(f"not keeping the 4-bit weights: {reason}"))
        return None


@contextmanager
def _locked(folder: Path, progress: ProgressSink) -> Iterator[None]:
    """One process writes a copy at a time; the others wait, and then find it."""
    make_private(folder.parent)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(LoadProgress("waiting for another localgemma that is quantizing this model"))
        lock.acquire()
    except NotImplementedError as error:  # some network folders know no locks
        raise OSError(str(error)) from error
    try:
        yield
    finally:
        lock.release()


def _make(
    folder: Path,
    wanted: Wanted,
    fault: str,
    make: Callable[["HashingFile"], None],
    progress: ProgressSink,
) -> None:
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a process that was killed
        _discard(leftover)
    if fault:
        progress(LoadProgress(f"making the kept 4-bit weights again: {fault}"))
        _discard(folder)
    free = shutil.disk_usage(folder.parent).free
    if free < wanted.size + _MARGIN:
        raise OSError(f"{format_bytes(wanted.size)} are needed, {format_bytes(free)} of disk are free")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir(mode=0o700)
        _write(draft, wanted, make)
        draft.rename(folder)
    finally:
        _discard(draft)


def _write(draft: Path, wanted: Wanted, make: Callable[["HashingFile"], None]) -> None:
    path = draft / _WEIGHTS
    with open(path, "wb", opener=private_opener) as weights, ThreadPoolExecutor(1, "flush") as flusher:
        sink = HashingFile(weights, flusher)
        make(sink)
        sink.finish()
    stat = path.stat()
    manifest = {"copy": wanted.to_dict(), "sha256": sink.sha256, "modified": stat.st_mtime_ns}
    with (draft / _MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


class HashingFile:
    """A file that is written front to back, hashed on the way, and sent to the disk while it grows."""

    def __init__(self, file: BinaryIO, flusher: Executor) -> None:
        self._file, self._flusher = file, flusher
        self._hash, self._dirty = hashlib.sha256(), 0
        self._flushes: list[Future[None]] = []

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: memoryview, /) -> int:
        self._hash.update(data)
        self._dirty += data.nbytes
        written = self._file.write(data)
        if self._dirty >= _DIRTY_LIMIT:
            self._flush()
        return written

    def _flush(self) -> None:
        self._file.flush()
        self._flushes.append(self._flusher.submit(os.fsync, self._file.fileno()))
        self._dirty = 0

    def finish(self) -> None:
        """Wait until all of it is on the disk; an OSError where it does not get there."""
        self._flush()
        for flush in self._flushes:
            flush.result()


def _fault(folder: Path, wanted: Wanted) -> str | None:
    """None where the copy can be used, "" where there is none, else what is wrong with it."""
    if not folder.is_dir():
        return ""
    try:
        manifest = _manifest(folder)
    except (OSError, ValueError):
        return "the manifest cannot be read"
    copy, now = manifest["copy"], wanted.to_dict()
    if copy != now:
        if copy.get("versions") != now["versions"]:
            return "they were made by other versions of the libraries"
        if copy.get("files") != now["files"]:
            return "the model's files have changed"
        return "they are laid out differently"
    return _damage(folder, manifest, verify=False) or None


def _damage(folder: Path, manifest: Mapping[str, Any], verify: bool) -> str:
    """What is wrong with the weights' file; "" where nothing is."""
    path = folder / _WEIGHTS
    try:
        stat = path.stat()
        if stat.st_size != manifest["copy"]["bytes"]:
            return "the file is not whole"
        touched = stat.st_mtime_ns != manifest.get("modified")
        if (verify or touched) and _sha256(path) != manifest.get("sha256"):
            return "the file is damaged"
    except (OSError, KeyError):
        return "the file cannot be read"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_object(folder / _MANIFEST)
    if not isinstance(manifest.get("copy"), dict):
        raise ValueError("the manifest is not one")
    return manifest


def _discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
