"""The hub client's cache folder: which files of a model it holds, and putting one in. Asks no network."""

import os
import re
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import constants

from localgemma_cli.backends.local.safetensors_file import shards_of

COMMIT = re.compile(r"[0-9a-f]{40}")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Repo:
    """A model as it is asked for; `gated` is what the catalogue says, None where it says nothing."""

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
        """What has arrived of a file, under the name the client gave it while it could resume."""
        return self.folder / "blobs" / f"{file.digest}.incomplete"

    def lock(self, file: "RepoFile") -> Path:
        return self.folder.parent / ".locks" / self.folder.name / f"{file.digest}.lock"


@dataclass(frozen=True)
class RepoFile:
    """`digest` names the blob: the sha256 of a large file, git's sha1 of a small one; `size` in bytes."""

    name: str
    size: int
    digest: str


def offline_by(offline: bool) -> str | None:
    """What forbids asking the network: our own option, or a variable of the hub's client; None: nothing."""
    if offline:
        return "--offline"
    if not constants.HF_HUB_OFFLINE:
        return None
    return "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"


def local_snapshot(repo: Repo) -> Path | None:
    """The folder the revision stood for when it was last fetched; it may be incomplete, or not there."""
    commit = repo.revision
    if not COMMIT.fullmatch(commit):
        commit = repo.reference.read_text(encoding="utf-8").strip() if repo.reference.is_file() else ""
    return repo.snapshot(commit) if COMMIT.fullmatch(commit) else None


def cached(model_id: str, revision: str | None = None) -> Path | None:
    """The folder of a complete snapshot on disk, or None; asks no network."""
    folder = local_snapshot(Repo(model_id, revision or constants.DEFAULT_REVISION))
    return folder if folder is not None and not missing_in(folder) else None


def missing_in(folder: Path) -> list[str]:
    """What a loader would look for in vain; an adapter brings no config, and need not bring a tokenizer."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        needed = {"adapter_model.safetensors"}
    else:
        needed = {"config.json", "tokenizer.json", *_weights_in(folder)}
    return sorted(name for name in needed if not (folder / name).is_file())


def _weights_in(folder: Path) -> set[str]:
    """In the loader's own order: a single file before an index."""
    index = folder / _INDEX
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return {"model.safetensors"}
    try:
        return set(shards_of(index))
    except (OSError, ValueError):
        return {f"readable {_INDEX}"}


def size_of(path: Path) -> int:
    """Bytes on disk, 0 where there is no such file."""
    return path.stat().st_size if path.is_file() else 0


def is_whole(path: Path, file: RepoFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def missing_bytes(repo: Repo, file: RepoFile) -> int:
    return 0 if is_whole(repo.blob(file), file) else max(0, file.size - size_of(repo.partial(file)))


def link(repo: Repo, commit: str, file: RepoFile) -> None:
    """Show a blob in the snapshot; where links do not work it moves there, as the client does it."""
    blob, pointer = repo.blob(file), repo.snapshot(commit) / file.name
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    if _are_links_supported(repo):
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    else:
        shutil.move(blob, pointer)


def _are_links_supported(repo: Repo) -> bool:
    from huggingface_hub.file_download import are_symlinks_supported  # slow to import

    with warnings.catch_warnings(action="ignore"):  # a lecture of the client where they are not
        return are_symlinks_supported(repo.folder.parent)


def record(repo: Repo, commit: str) -> None:
    """Let the revision stand for a commit; done last, so that it keeps naming the whole copy before it."""
    if repo.revision == commit:
        return
    repo.reference.parent.mkdir(parents=True, exist_ok=True)
    draft = repo.reference.with_name(f"{repo.reference.name}.{os.getpid()}")
    draft.write_text(commit, encoding="utf-8")
    draft.replace(repo.reference)


def downloaded_bytes(model_id: str) -> int:
    """What a model takes up in the hub's cache, unfinished downloads included; 0 where it is not there."""
    blobs = Repo(model_id, constants.DEFAULT_REVISION).folder / "blobs"
    snapshots = blobs.with_name("snapshots")  # where links do not work, the files are here
    files = (*blobs.glob("*"), *snapshots.glob("*/**/*"))
    return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink())


def forget(model_id: str) -> None:
    """Take every revision of a model out of the hub's cache."""
    shutil.rmtree(Repo(model_id, constants.DEFAULT_REVISION).folder)
