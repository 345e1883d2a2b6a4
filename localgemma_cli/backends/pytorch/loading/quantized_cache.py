"""The 4-bit copies of models in the cache folder: one folder each, written whole or not at all.

    <cache>/weights/<name>-<digest>/manifest.json
                                    weights.safetensors

The digest is of the source (repository and commit, or folder) and the format. The manifest has what the copy
was made from, the library versions, its size, its sha256 and its modification time. A copy is made again
where its manifest differs from the current specification. Every load checks the size. The sha256, which would
take longer than the load itself, is checked only where the modification time has changed or a user asks.
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

from localgemma_cli.documents import failure_reason, read_json_object
from localgemma_cli.environment import cache_folder, make_private, private_opener
from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.models.hub.cache import COMMIT, Repo
from localgemma_cli.models.safetensors_file import map_file
from localgemma_cli.units import format_bytes

LAYOUT_VERSION = 2  # raise it when the file format changes: older copies are then made again
_MANIFEST, _WEIGHTS = "manifest.json", "weights.safetensors"
_MARGIN = 256_000_000  # bytes of disk to leave free
_DIRTY_LIMIT = 1 << 28  # bytes between flushes, so that the last one is short


@dataclass(frozen=True)
class CopySpec:
    """What a copy must be: `source` and `form` identify it, the rest decides whether it is up to date.

    `files` are those of the source: (name, bytes, modification time in ns). `header` and `size`, in bytes,
    are those of the copy's own file.
    """

    model: str
    source: str
    form: Mapping[str, str]
    files: tuple[tuple[str, int, int], ...]
    header: bytes
    size: int

    @property
    def key(self) -> str:
        """The name of the copy's folder."""
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


def identify_source(model_id: str, folder: Path) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """The repository and commit, or the folder; and the weight files as (name, bytes, modified in ns).

    The time is 0 for a commit from the hub, whose files never change.
    """
    commit = folder.name
    from_hub = COMMIT.fullmatch(commit) and Repo(model_id, commit).snapshot(commit) == folder
    weights = sorted((*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")))
    stats = [(path.name, path.stat()) for path in weights]
    files = tuple((name, stat.st_size, 0 if from_hub else stat.st_mtime_ns) for name, stat in stats)
    return f"{model_id}@{commit}" if from_hub else str(folder.resolve()), files


@dataclass(frozen=True)
class QuantizedCopy:
    """A copy on disk; `size` is in bytes, `problem` is empty or a clause such as "the file is damaged"."""

    folder: Path
    model: str
    source: str
    form: Mapping[str, str]
    size: int
    problem: str = ""


def weights_folder() -> Path:
    return cache_folder() / "weights"


def list_copies(*, verify: bool = False) -> tuple[QuantizedCopy, ...]:
    """All copies on disk, also damaged ones; with `verify`, compare each file with its sha256."""
    root = weights_folder()
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return tuple(
        _read_copy(each, verify) for each in folders if each.is_dir() and not each.name.startswith(".")
    )


def _read_copy(folder: Path, verify: bool) -> QuantizedCopy:
    try:
        manifest = _read_manifest(folder)
        what = manifest["copy"]
        problem = _find_damage(folder, manifest, verify)
        if _has_older_layout(manifest):
            problem = "the file layout has changed"
        form = {str(key): str(value) for key, value in what["form"].items()}
        return QuantizedCopy(
            folder, str(what["model"]), str(what["source"]), form, _folder_size(folder), problem
        )
    except (OSError, ValueError, KeyError, AttributeError):  # any content is possible
        return QuantizedCopy(
            folder, folder.name, "?", {}, _folder_size(folder), "the manifest cannot be read"
        )


def _folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def remove_copy(copy: QuantizedCopy) -> None:
    _discard(copy.folder)


def open_or_create(
    spec: CopySpec, write: Callable[["HashingFile"], None], progress: ProgressSink
) -> mmap.mmap | None:
    """Map the copy, after creating it with `write` where it is missing or outdated.

    None where it cannot be saved, such as on a full disk. Any other error of `write` is raised, and no copy
    is left.
    """
    try:
        folder = weights_folder() / spec.key
        if _find_fault(folder, spec) is None:
            with suppress(OSError, ValueError):  # another process may be replacing it
                return map_file(folder / _WEIGHTS)
        with _locked(folder, progress):
            fault = _find_fault(folder, spec)
            if fault is not None:
                _create(folder, spec, fault, write, progress)
            return map_file(folder / _WEIGHTS)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        progress(LoadProgress(f"cannot save the 4-bit weights: {where}{failure_reason(error)}"))
        return None


@contextmanager
def _locked(folder: Path, progress: ProgressSink) -> Iterator[None]:
    """Let one process at a time write a copy; the others wait for it."""
    make_private(folder.parent)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(LoadProgress("waiting for another localgemma process that is quantizing this model"))
        lock.acquire()
    except NotImplementedError as error:  # some network file systems do not support locks
        raise OSError(str(error)) from error
    try:
        yield
    finally:
        lock.release()


def _create(
    folder: Path,
    spec: CopySpec,
    fault: str,
    write: Callable[["HashingFile"], None],
    progress: ProgressSink,
) -> None:
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a process that was killed
        _discard(leftover)
    if fault:
        progress(LoadProgress(f"quantizing again: {fault}"))
        _discard(folder)
    _discard_older_layouts(spec)
    free = shutil.disk_usage(folder.parent).free
    if free < spec.size + _MARGIN:
        raise OSError(
            f"not enough free disk space: {format_bytes(spec.size)} needed, {format_bytes(free)} free"
        )
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir(mode=0o700)
        _write_copy(draft, spec, write)
        draft.rename(folder)
    finally:
        _discard(draft)


def _discard_older_layouts(spec: CopySpec) -> None:
    """Remove what an older version of this program made of the same source: nothing reads it any more."""
    for manifest in weights_folder().glob(f"*/{_MANIFEST}"):
        with suppress(OSError, ValueError):
            found = _read_manifest(manifest.parent)
            if found["copy"].get("source") == spec.source and _has_older_layout(found):
                _discard(manifest.parent)


def _has_older_layout(manifest: Mapping[str, Any]) -> bool:
    versions = manifest["copy"].get("versions")
    return not isinstance(versions, dict) or versions.get("layout") != str(LAYOUT_VERSION)


def _write_copy(draft: Path, spec: CopySpec, write: Callable[["HashingFile"], None]) -> None:
    path = draft / _WEIGHTS
    with open(path, "wb", opener=private_opener) as weights, ThreadPoolExecutor(1, "flush") as flusher:
        sink = HashingFile(weights, flusher)
        write(sink)
        sink.finish()
    stat = path.stat()
    manifest = {"copy": spec.to_dict(), "sha256": sink.sha256, "modified": stat.st_mtime_ns}
    with (draft / _MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


class HashingFile:
    """A file that is hashed while it is written front to back, and flushed to the disk as it grows."""

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
        """Wait until all of it is on the disk; OSError where that fails."""
        self._flush()
        for flush in self._flushes:
            flush.result()


def _find_fault(folder: Path, spec: CopySpec) -> str | None:
    """Why the copy cannot be used: None where it can, "" where it does not exist, else a clause."""
    if not folder.is_dir():
        return ""
    try:
        manifest = _read_manifest(folder)
    except (OSError, ValueError):
        return "the manifest cannot be read"
    copy, now = manifest["copy"], spec.to_dict()
    if copy != now:
        if _has_older_layout(manifest):
            return "the file layout has changed"
        if copy.get("versions") != now["versions"]:
            return "the library versions have changed"
        if copy.get("files") != now["files"]:
            return "the model's files have changed"
        return "the file layout has changed"
    return _find_damage(folder, manifest, verify=False) or None


def _find_damage(folder: Path, manifest: Mapping[str, Any], verify: bool) -> str:
    """Why the weights' file cannot be used, or "" where it can."""
    path = folder / _WEIGHTS
    try:
        stat = path.stat()
        if stat.st_size != manifest["copy"]["bytes"]:
            return "the file is incomplete"
        touched = stat.st_mtime_ns != manifest.get("modified")
        if (verify or touched) and _sha256(path) != manifest.get("sha256"):
            return "the file is damaged"
    except (OSError, KeyError):
        return "the file cannot be read"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = read_json_object(folder / _MANIFEST)
    if not isinstance(manifest.get("copy"), dict):
        raise ValueError('the manifest has no entry "copy"')
    return manifest


def _discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
