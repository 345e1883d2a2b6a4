"""The world outside: the three streams, and the folders of config and data."""

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import platformdirs


@dataclass(frozen=True)
class Streams:
    stdin: TextIO
    stdout: TextIO
    stderr: TextIO

    def say(self, text: str) -> None:
        """A line for people, at once."""
        self.stderr.write(f"{text}\n")
        self.stderr.flush()


def standard_streams() -> Streams:
    """The process's own; a closed one (`2>&-`) reads as empty and writes to nowhere."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows a `?`
    return Streams(
        sys.stdin or open(os.devnull, encoding="utf-8"),
        sys.stdout or open(os.devnull, "w", encoding="utf-8"),
        sys.stderr or open(os.devnull, "w", encoding="utf-8"),
    )


@dataclass(frozen=True)
class Rank:
    """This process among those that `torchrun` started; 0 owns the terminal."""

    index: int
    count: int


def torchrun_rank(environ: Mapping[str, str]) -> Rank | None:
    """None for a process that runs alone."""
    if "TORCHELASTIC_RUN_ID" not in environ or environ.get("WORLD_SIZE", "1") == "1":
        return None
    return Rank(int(environ["RANK"]), int(environ["WORLD_SIZE"]))


def fall_silent() -> None:
    """Nothing from or to the terminal that rank 0 owns; Ctrl-C is its matter, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def config_folder() -> Path:
    """`config.toml`, `presets/*.toml`; `LOCALGEMMA_HOME/config` where that variable is set."""
    home = os.environ.get("LOCALGEMMA_HOME")
    return Path(home).expanduser() / "config" if home else platformdirs.user_config_path("localgemma")


def cache_folder() -> Path:
    """What can be made again, private to the user; `LOCALGEMMA_HOME/cache` where that variable is set."""
    home = os.environ.get("LOCALGEMMA_HOME")
    folder = Path(home).expanduser() / "cache" if home else platformdirs.user_cache_path("localgemma")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def data_folder() -> Path:
    """What cannot be made again: conversations; `LOCALGEMMA_HOME/data` where that variable is set."""
    home = os.environ.get("LOCALGEMMA_HOME")
    return Path(home).expanduser() / "data" if home else platformdirs.user_data_path("localgemma")
