"""The files that a loaded model depends on, and whether one of them has changed since."""

import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from localgemma_cli.environment import config_folder
from localgemma_cli.warm.key import PACKAGE

_PACKAGES = ("torch", "transformers", "tokenizers", "xllamacpp", "bitsandbytes", "peft", "llguidance")

Stamp = tuple[int, int, int]  # size, time of the last change in nanoseconds, inode
Stamps = Mapping[str, Stamp | None]  # by path; None for a path that does not exist


def read_stamps(paths: Iterable[Path]) -> Stamps:
    """The stamps of files, and of those that are directly in folders."""
    return {each: _stamp(each) for path in paths for each in (str(path), *_files_in(path))}


def input_paths(models: Iterable[Path | None], template: str) -> tuple[Path, ...]:
    """What `read_stamps` must look at for a model in these folders or files, with the code that runs it.

    Absolute paths, because the process leaves its folder.
    """
    given = [path.absolute() for path in models if path is not None]
    refs = [above.parent / "refs" for path in given for above in path.parents if above.name == "snapshots"]
    packages = [Path(spec.origin) for name in _PACKAGES if (spec := find_spec(name)) and spec.origin]
    config = config_folder()
    own = (config / "models.toml", config / "presets", Path(template).absolute())
    return (*given, *refs, *own, *packages, *_code_folders())


def _code_folders() -> list[Path]:
    return [Path(folder) for folder, _, _ in os.walk(PACKAGE) if not folder.endswith("__pycache__")]


def _files_in(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if not entry.is_dir(follow_symlinks=True)]
    except OSError:  # it is a file, or does not exist
        return []


def _stamp(path: str) -> Stamp | None:
    """A folder's own stamp would change with unrelated files in it; it has none."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return None if os.path.isdir(path) else (about.st_size, about.st_mtime_ns, about.st_ino)
