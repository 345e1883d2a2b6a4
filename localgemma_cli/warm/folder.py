"""The private folder in which processes that keep a model listen, each on a socket named by its key."""

import hashlib
import os
import socket
import stat
from pathlib import Path

from localgemma_cli.environment import make_private, runtime_folder

_LONGEST_SOCKET = 100  # bytes; the path of a Unix socket is limited to 104 on macOS and 108 on Linux
_SUFFIX = ".kept"
_KEY_LENGTH = 32


class KeptUnusable(Exception):
    """A kept model cannot be used; the argument says why, as the end of a sentence."""


def kept_folder() -> Path:
    """The folder, which may not exist; one of the temporary files if the usual one has too long a path."""
    usual = runtime_folder()
    if len(os.fsencode(usual)) + 1 + _KEY_LENGTH + len(_SUFFIX) <= _LONGEST_SOCKET:
        return usual
    import tempfile

    name = hashlib.sha256(os.fsencode(usual)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"localgemma-{os.getuid()}-{name}"


def socket_path(folder: Path, key: str) -> Path:
    return folder / f"{key[:_KEY_LENGTH]}{_SUFFIX}"


def lock_file(folder: Path) -> Path:
    """Locked while a process starts or ends, so that one key has one process."""
    return folder / "lock"


def kept_sockets(folder: Path) -> list[Path]:
    """The sockets in the folder, by name."""
    return sorted(folder.glob(f"*{_SUFFIX}"))


def make_kept_folder(folder: Path) -> None:
    """Create the folder, for this user only. Raises KeptUnusable."""
    try:
        make_private(folder)
    except OSError as error:
        raise KeptUnusable(f"has no folder: {folder} cannot be created: {error.strerror}") from error
    require_private(folder)


def require_private(folder: Path) -> None:
    """KeptUnusable unless it is a folder that only this user can enter."""
    if not hasattr(socket, "AF_UNIX"):
        raise KeptUnusable("cannot be used: this system's Python has no Unix sockets")
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode):
        raise KeptUnusable(f"has no folder: {folder} is something else")
    if about.st_uid != os.getuid():
        raise KeptUnusable(f"has no folder of its own: {folder} belongs to another user")
    if about.st_mode & 0o077:
        raise KeptUnusable(f"has no private folder: others can open {folder} (chmod 700 closes it)")
