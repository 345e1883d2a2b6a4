"""The hub client's cache folder: which files of a model it holds, and adding files. Uses no network."""

import os
import re
import shutil
import stat
import tempfile
import warnings
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from huggingface_hub import constants

from localgemma_cli.environment import make_private
from localgemma_cli.models.safetensors_file import shards_of
from localgemma_cli.models.unsupported_formats import is_adapter

_REVISION = re.compile(r"\w[\w.+@-]*(/\w[\w.+@-]*)*")
COMMIT = re.compile(r"[0-9a-f]{40}")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Repo:
    """A model and revision; `gated` as the catalogue states it, None if unknown."""

    model_id: str
    revision: str
    gated: bool | None = None
    token: str | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        name = constants.REPO_ID_SEPARATOR.join(["models", *self.model_id.split("/")])
        return Path(constants.HF_HUB_CACHE) / name

    @property
    def reference(self) -> Path:
        return self.folder / "refs" / self.revision

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def blob(self, file: "RepoFile") -> Path:
        return self.folder / "blobs" / file.digest

    def partial(self, file: "RepoFile") -> Path:
        """The partial download of a file, under the name that older clients resumed from."""
        return self.folder / "blobs" / f"{file.digest}.incomplete"

    def lock(self, file: "RepoFile") -> Path:
        return self.folder.parent / ".locks" / self.folder.name / f"{file.digest}.lock"


@dataclass(frozen=True)
class RepoFile:
    """A file on the hub.

    `digest` names its blob: the sha256 of a large file, git's sha1 of a small one; `size` in bytes.
    """

    name: str
    size: int
    digest: str


def offline_by(offline: bool) -> str | None:
    """What forbids network access: --offline or a variable of the hub's client; None if it is allowed."""
    if offline:
        return "--offline"
    if not constants.HF_HUB_OFFLINE:
        return None
    return "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"


def is_revision(name: str) -> bool:
    """Whether it can be a branch, a tag or a commit in git, and a file name in the cache."""
    return len(name) <= 200 and ".." not in name and _REVISION.fullmatch(name) is not None


def local_snapshot(repo: Repo) -> Path | None:
    """The folder that the revision pointed to when it was last fetched; it may be incomplete or missing."""
    commit = repo.revision
    if not COMMIT.fullmatch(commit):
        commit = ""
        if is_revision(repo.revision) and repo.reference.is_file():
            with repo.reference.open("rb") as reference:
                commit = reference.read(64).decode("ascii", errors="replace").strip()
    return repo.snapshot(commit) if COMMIT.fullmatch(commit) else None


def cached_snapshot(model_id: str, revision: str | None = None) -> Path | None:
    """The folder of a complete snapshot on disk, or None; uses no network."""
    folder = local_snapshot(Repo(model_id, revision or constants.DEFAULT_REVISION))
    return folder if folder is not None and not missing_in(folder) else None


def missing_in(folder: Path) -> list[str]:
    """The files that a loader needs and the folder lacks; an adapter needs no config and no tokenizer."""
    if folder.is_dir() and is_adapter({each.name for each in folder.iterdir()}):
        needed = {"adapter_model.safetensors"}
    else:
        needed = {"config.json", "tokenizer.json", *_weights_in(folder)}
    return sorted(name for name in needed if not (folder / name).is_file())


def _weights_in(folder: Path) -> set[str]:
    """In the loader's order: a single file before an index."""
    index = folder / _INDEX
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return {"model.safetensors"}
    try:
        return set(shards_of(index))
    except (OSError, ValueError):
        return {f"readable {_INDEX}"}


def size_of(path: Path) -> int:
    """Bytes on disk; 0 without such a file."""
    return path.stat().st_size if path.is_file() else 0


def is_whole(path: Path, file: RepoFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def missing_bytes(repo: Repo, file: RepoFile) -> int:
    return 0 if is_whole(repo.blob(file), file) else max(0, file.size - size_of(repo.partial(file)))


def make_folder(folder: Path) -> None:
    """Create a folder of the cache that only its owner can write, under any umask; a new cache is private.

    The permissions of an existing cache, which may be shared, stay as they are.
    """
    make_private(Path(constants.HF_HUB_CACHE))
    for each in (*reversed(folder.parents), folder):
        if not each.exists():
            each.mkdir(mode=0o755, exist_ok=True)


def discard_foreign(path: Path) -> None:
    """Delete a symbolic or hard link at the path of a file: writing to it would change another file."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        path.unlink()


def open_partial(path: Path) -> FileIO:
    """Open a partial download to append to it; OSError for a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return FileIO(os.open(path, flags, 0o644), "ab")


def link(repo: Repo, commit: str, file: RepoFile) -> None:
    """Link a blob into the snapshot; without links it is moved there, as the client does."""
    blob, pointer = repo.blob(file), repo.snapshot(commit) / file.name
    for folder in (each for each in reversed(pointer.parents) if each.is_relative_to(repo.snapshot(commit))):
        if folder.is_symlink():  # a link out of the cache: do not write there
            folder.unlink()
    make_folder(pointer.parent)
    pointer.unlink(missing_ok=True)
    if _are_links_supported(repo):
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    else:
        shutil.move(blob, pointer)


def _are_links_supported(repo: Repo) -> bool:
    from huggingface_hub.file_download import are_symlinks_supported  # slow to import

    with warnings.catch_warnings(action="ignore"):  # the client warns at length if they are not
        return are_symlinks_supported(repo.folder.parent)


def record(repo: Repo, commit: str) -> None:
    """Point the revision to a commit; called last: until then it names the previous complete copy."""
    if repo.revision == commit:
        return
    make_folder(repo.reference.parent)
    descriptor, draft = tempfile.mkstemp(dir=repo.reference.parent, prefix=f".{repo.reference.name}.")
    with open(descriptor, "w", encoding="ascii") as reference:
        reference.write(commit)
    os.chmod(draft, 0o644)  # as the rest of the cache: readable to others if its folder is
    os.replace(draft, repo.reference)


def downloaded_bytes(model_id: str) -> int:
    """The size of a model in the hub's cache, with partial downloads; 0 if it is not there."""
    blobs = Repo(model_id, constants.DEFAULT_REVISION).folder / "blobs"
    snapshots = blobs.with_name("snapshots")  # without links, the files are here
    files = (*blobs.glob("*"), *snapshots.glob("*/**/*"))
    return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink())


def delete_model(model_id: str) -> None:
    """Delete every revision of a model from the hub's cache."""
    shutil.rmtree(Repo(model_id, constants.DEFAULT_REVISION).folder)
