"""The process and its surroundings: standard streams, torchrun, the folders for config, cache and data."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOBase, TextIOWrapper
from pathlib import Path
from threading import RLock
from typing import TextIO

import platformdirs

from localgemma_cli.errors import UsageError
from localgemma_cli.sanitize import sanitize_message, visible


class StatusLine:
    """The terminal row that shows progress; it is erased before any other line is written."""

    def __init__(self) -> None:
        self._lock, self._shown = RLock(), False

    def draw(self, terminal: TextIO, text: str) -> None:
        with self._lock:
            terminal.write(f"\r{visible(text)}\x1b[K\r")
            terminal.flush()
            self._shown = True

    def erase(self, terminal: TextIO) -> None:
        with self._lock:
            if self._shown:
                terminal.write("\r\x1b[K")
                terminal.flush()
                self._shown = False

    def say(self, terminal: TextIO, text: str) -> None:
        """Write a line above the status line, from any thread."""
        with self._lock:
            self.erase(terminal)
            terminal.write(f"{text}\n")
            terminal.flush()


STATUS = StatusLine()  # one per process, since every `Streams` shares standard error


@dataclass(frozen=True)
class Streams:
    """The standard streams. All text for the user is written, and sanitized, by one of these methods."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO

    def say(self, text: str, paint: Callable[[str], str] = str) -> None:
        """Write a line to stderr; `paint` adds colours after the text has been sanitized."""
        with suppress(OSError):  # a full disk behind `2>` must not stop the answer
            STATUS.say(self.stderr, paint(sanitize_message(text)))

    def show(self, text: str) -> None:
        """Write a line of a command's output."""
        self.stdout.write(f"{sanitize_message(text)}\n")

    def emit(self, text: str) -> None:
        """Write requested content: unchanged to a pipe or a file, sanitized to a terminal."""
        self.stdout.write(visible(text) if self.stdout.isatty() else text)

    def ask(self, question: str) -> str:
        """Ask the user a question; the answer's line."""
        self.stderr.write(f"{sanitize_message(question)} ")
        self.stderr.flush()
        answer = self.stdin.readline()
        if not answer:  # after Ctrl-D the cursor is still behind the question
            self.stderr.write("\n")
        return answer.strip()

    def can_ask(self) -> bool:
        """Whether a person sees a question and can answer it."""
        return self.stdin.isatty() and self.stderr.isatty()

    def confirm(self, question: str) -> bool:
        """Whether the person answers y or yes; Enter and Ctrl-D mean no."""
        return self.ask(f"{question} [y/N]").lower() in ("y", "yes")


def standard_streams() -> Streams:
    """This process's streams. A closed stdin is empty, a closed stderr discards, a closed stdout fails."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a `?` for a character that the terminal's encoding lacks
    stderr = sys.stderr.own if isinstance(sys.stderr, LibraryStream) else sys.stderr
    return Streams(
        sys.stdin or open(os.devnull, encoding="utf-8"),
        sys.stdout or open(1, "w", encoding="utf-8", closefd=False),
        stderr or open(os.devnull, "w", encoding="utf-8"),
    )


class LibraryStream(TextIOBase):
    """Replaces a standard stream for libraries: discards what they write, or sanitizes it if `shown`.

    It replaces `sys.stderr` (warnings, logs, progress bars) and, during shell completion, `sys.stdout`.
    `own` is the real stream, for the program itself.
    """

    def __init__(self, own: TextIO, *, shown: bool) -> None:
        self.own, self._shown = own, shown

    def write(self, text: str) -> int:
        if self._shown:
            self.own.write(visible(text))
        return len(text)

    def flush(self) -> None:
        self.own.flush()

    def fileno(self) -> int:
        return self.own.fileno()


def hide_library_output(streams: Streams, *, verbose: bool) -> None:
    """Show the output of libraries with `-v` only. Call this before they are imported."""
    sys.stderr = LibraryStream(streams.stderr, shown=verbose)
    if not verbose:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # this part of torch bypasses sys.stderr


def fill_closed_descriptors() -> None:
    """Open /dev/null for closed standard streams (`>&-`), so that no other file gets their descriptors.

    Writing to a closed stdout still fails.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free descriptor, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # open until the process ends


def keep_own_stderr() -> None:
    """Give the program its own descriptor for stderr; another thread may redirect descriptor 2 for a while.

    `suppress_panics` does that while a tokenizer loads.
    """
    if isinstance(sys.stderr, TextIOWrapper):
        own = os.dup(2)
        sys.stderr = open(own, "w", 1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)  # noqa: SIM115


@dataclass(frozen=True)
class Rank:
    """This process among those that `torchrun` started; index 0 uses the terminal."""

    index: int
    count: int


def torchrun_rank(environ: Mapping[str, str]) -> Rank | None:
    """The rank from torchrun's variables; None for a single process, or if they are invalid."""
    try:
        rank = Rank(int(environ["RANK"]), int(environ["WORLD_SIZE"]))
    except (KeyError, ValueError):
        return None
    alone = "TORCHELASTIC_RUN_ID" not in environ or rank.count < 2
    return None if alone or not 0 <= rank.index < rank.count else rank


def detach_from_terminal() -> None:
    """Ignore Ctrl-C and redirect the standard streams to /dev/null: rank 0 uses the terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def expand_home(path: str | Path) -> Path:
    """Expand `~`; that of an unknown user stays, so the path will not be found."""
    return Path(os.path.expanduser(path))


def config_folder() -> Path:
    """For `config.toml` and `presets/*.toml`; `LOCALGEMMA_HOME/config` if that variable is set."""
    return _folder("config", platformdirs.user_config_path)


def config_file() -> Path:
    """The user's defaults for options; it may not exist."""
    return config_folder() / "config.toml"


def make_private(folder: Path) -> Path:
    """Create `folder` and its parents if missing, readable by this user only, independent of the umask.

    Raises OSError if that fails, or if `folder` is a file.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        with suppress(FileExistsError):  # another process has created it
            each.mkdir(mode=0o700)
            each.chmod(0o700)  # a umask may remove the user's own permissions, too
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return folder


def is_ours(about: os.stat_result) -> bool:
    """Whether only this user can change a file or folder, so that code in it can be trusted."""
    return sys.platform == "win32" or (about.st_uid == os.getuid() and not about.st_mode & 0o022)


def private_opener(path: str, flags: int) -> int:
    """Opener for `open`: creates files for this user only, and does not follow links."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)


def cache_folder() -> Path:
    """For files that can be recreated; `LOCALGEMMA_HOME/cache` if that variable is set."""
    return _folder("cache", platformdirs.user_cache_path)


def data_folder() -> Path:
    """For files that cannot be recreated: conversations; `LOCALGEMMA_HOME/data` if that variable is set."""
    return _folder("data", platformdirs.user_data_path)


def runtime_folder() -> Path:
    """For the sockets of running servers; `LOCALGEMMA_HOME/run` if that variable is set."""
    return _folder("run", platformdirs.user_runtime_path)


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The cache folder of huggingface_hub 1.x, computed as in its constants.py, without importing it."""
    caches = environ.get("XDG_CACHE_HOME", "~/.cache")
    home = environ.get("HF_HOME", os.path.join(caches, "huggingface"))
    legacy = environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return expand_home(os.path.expandvars(environ.get("HF_HUB_CACHE", legacy)))


def _folder(name: str, usual: Callable[[str], Path]) -> Path:
    """The folder may not exist: it is created when a file is written there."""
    home = os.environ.get("LOCALGEMMA_HOME")
    if not home:
        folder, variable = usual("localgemma"), "HOME"
    else:
        folder, variable = Path(os.path.expanduser(home)) / name, "LOCALGEMMA_HOME"
    if str(folder).startswith("~"):  # unknown user or no home: a folder named ~ would be created here
        raise UsageError(
            f"{variable} is not a valid folder: {home or folder}.", f"Set {variable} to a full path."
        )
    return folder
