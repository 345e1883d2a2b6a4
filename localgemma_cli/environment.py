"""The world outside: the three streams, and the folders of config and data."""

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
from localgemma_cli.sanitize import for_people, visible


class StatusLine:
    """The row of a terminal that is drawn again and again; it makes room for whatever else is written."""

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
        """A line of its own, whichever thread has it to say."""
        with self._lock:
            self.erase(terminal)
            terminal.write(f"{text}\n")
            terminal.flush()


STATUS = StatusLine()  # standard error has one, however often its `Streams` are made


@dataclass(frozen=True)
class Streams:
    """The doors: whatever is written for people goes through one of these methods, and is made safe there."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO

    def say(self, text: str, paint: Callable[[str], str] = str) -> None:
        """A line for people, at once; `paint` adds the program's own colours to what is safe by then."""
        with suppress(OSError):  # a full disk behind `2>`: the answer itself still has its way
            STATUS.say(self.stderr, paint(for_people(text)))

    def show(self, text: str) -> None:
        """A line of what a command prints for people."""
        self.stdout.write(f"{for_people(text)}\n")

    def emit(self, text: str) -> None:
        """Text that was asked for: as it is for a pipe or a file, made safe for a terminal."""
        self.stdout.write(visible(text) if self.stdout.isatty() else text)

    def ask(self, question: str) -> str:
        """The line that a person answers."""
        self.stderr.write(f"{for_people(question)} ")
        self.stderr.flush()
        answer = self.stdin.readline()
        if not answer:  # Ctrl-D leaves the cursor behind the question
            self.stderr.write("\n")
        return answer.strip()


def standard_streams() -> Streams:
    """The process's own; closed, stdin is empty, stderr writes to nowhere, stdout cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows a `?`
    stderr = sys.stderr.own if isinstance(sys.stderr, LibraryStream) else sys.stderr
    return Streams(
        sys.stdin or open(os.devnull, encoding="utf-8"),
        sys.stdout or open(1, "w", encoding="utf-8", closefd=False),
        stderr or open(os.devnull, "w", encoding="utf-8"),
    )


class LibraryStream(TextIOBase):
    """What stands for a stream of the process where libraries write: not `shown`, or shown and made safe.

    Of `sys.stderr` (warnings, logs, bars) and, while a shell completes, of `sys.stdout`. `own` is the
    program's own way to it.
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


def mind_libraries(streams: Streams, *, verbose: bool) -> None:
    """What libraries have to say reaches a person with `-v` only; before they are imported."""
    sys.stderr = LibraryStream(streams.stderr, shown=verbose)
    if not verbose:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # that part writes to the descriptor itself


def occupy_closed() -> None:
    """Take the places of standard streams that are closed (`>&-`), which the next file opened would get.

    What is then written to stdout fails, as it would have without this.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest that is free is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # as long as the process


@dataclass(frozen=True)
class Rank:
    """This process among those that `torchrun` started; 0 owns the terminal."""

    index: int
    count: int


def torchrun_rank(environ: Mapping[str, str]) -> Rank | None:
    """None for a process that runs alone, or whose variables are not those that torchrun sets."""
    try:
        rank = Rank(int(environ["RANK"]), int(environ["WORLD_SIZE"]))
    except (KeyError, ValueError):
        return None
    alone = "TORCHELASTIC_RUN_ID" not in environ or rank.count < 2
    return None if alone or not 0 <= rank.index < rank.count else rank


def fall_silent() -> None:
    """Nothing from or to the terminal that rank 0 owns; Ctrl-C is its matter, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def expanded(path: str | Path) -> Path:
    """With `~` as the home folder; that of a user who does not exist stays as it is, and is not found."""
    return Path(os.path.expanduser(path))


def config_folder() -> Path:
    """`config.toml`, `presets/*.toml`; `LOCALGEMMA_HOME/config` where that variable is set."""
    return _folder("config", platformdirs.user_config_path)


def make_private(folder: Path) -> Path:
    """`folder`, made where it is missing with all above it, for this user alone whatever the umask.

    OSError where it cannot be, or where a file is in its place.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        with suppress(FileExistsError):  # another process was faster
            each.mkdir(mode=0o700)
            each.chmod(0o700)  # an umask can take our own bits away, too
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return folder


def is_ours(about: os.stat_result) -> bool:
    """Whether a file or folder is this user's, and nobody else can change it: what code may come from."""
    return sys.platform == "win32" or (about.st_uid == os.getuid() and not about.st_mode & 0o022)


def private_opener(path: str, flags: int) -> int:
    """For `open`: a file that is made is this user's alone, and a link is not followed to another."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)


def cache_folder() -> Path:
    """What can be made again, private to the user; `LOCALGEMMA_HOME/cache` where that variable is set."""
    return _folder("cache", platformdirs.user_cache_path)


def data_folder() -> Path:
    """What cannot be made again: conversations; `LOCALGEMMA_HOME/data` where that variable is set."""
    return _folder("data", platformdirs.user_data_path)


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The folder that huggingface_hub 1.x keeps weights in (its constants.py), found without importing it."""
    caches = environ.get("XDG_CACHE_HOME", "~/.cache")
    home = environ.get("HF_HOME", os.path.join(caches, "huggingface"))
    legacy = environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return expanded(os.path.expandvars(environ.get("HF_HUB_CACHE", legacy)))


def _folder(name: str, usual: Callable[[str], Path]) -> Path:
    """It need not exist: only what is written there makes it."""
    home = os.environ.get("LOCALGEMMA_HOME")
    if not home:
        folder, variable = usual("localgemma"), "HOME"
    else:
        folder, variable = Path(os.path.expanduser(home)) / name, "LOCALGEMMA_HOME"
    if str(folder).startswith("~"):  # no such user, or no home: else a folder of that name would be made here
        raise UsageError(f"{variable} names no folder: {home or folder}.", f"Set {variable} to a full path.")
    return folder
