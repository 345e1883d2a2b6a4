"""Our own products in C, compiled at first use by the machine's compiler and kept in the cache folder."""

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch  # before a library: it brings the OpenMP runtime that all share

from localgemma_cli.environment import cache_folder
from localgemma_cli.planning.host import c_compiler, cpu_flags

_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_FOLDER = Path(__file__).parent
_PATIENCE = 30  # seconds for a compiler that takes half of one
_DIGEST = hashlib.sha256().digest_size


@functools.cache
def compiled(source: str, needed: frozenset[str], options: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """What is made of `source`, beside this file; whoever calls it checks what it computes.

    None without a compiler, or without one of the processor flags `needed`.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    flags = cpu_flags() or frozenset()
    if not flags >= needed:
        return None
    file = _FOLDER / source
    try:
        if not (compiler := c_compiler()):
            return None
        command = (*compiler, *_FLAGS, *options)
        texts = [each.read_text() for each in (file, *sorted(_FOLDER.glob("*.h")))]
        told = (*command, _version(compiler), *sorted(flags), torch.__version__, *texts)
        key = hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]
        return _library(command, file, f"{file.stem}-{key}.so")
    except (OSError, subprocess.SubprocessError):  # a compiler that cannot
        return None


def bound(library: ctypes.CDLL, arguments: Mapping[str, Sequence[Any]]) -> ctypes.CDLL:
    """With the types that its functions take, by name; they return nothing."""
    for name, types in arguments.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, None
    return library


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    asked = subprocess.run([*compiler, "--version"], capture_output=True, timeout=_PATIENCE, check=True)
    return asked.stdout.decode(errors="replace").partition("\n")[0]


def _library(command: tuple[str, ...], source: Path, name: str) -> ctypes.CDLL:
    """From the cache, or else made for it; made for this process alone where the cache cannot be used."""
    try:
        folder = cache_folder() / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(folder):
            raise PermissionError(f"others may write to {folder}")
        if not _is_whole(folder / name):
            _compile(command, source, folder / name)
        return ctypes.CDLL(str(folder / name))
    except OSError:
        with tempfile.TemporaryDirectory() as own:  # what is open stays so
            _compile(command, source, Path(own) / name)
            return ctypes.CDLL(str(Path(own) / name))


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can put code there."""
    about = folder.stat()
    return about.st_uid == os.getuid() and not about.st_mode & 0o022


def _compile(command: tuple[str, ...], source: Path, library: Path) -> None:
    """Its digest goes behind it, where no loader looks: what is cut short would end the process."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        words = (*command, f"-I{_FOLDER}", "-o", str(made), str(source))
        subprocess.run(words, capture_output=True, timeout=_PATIENCE, check=True)
        content = made.read_bytes()
        made.write_bytes(content + hashlib.sha256(content).digest())
        os.replace(made, library)


def _is_whole(library: Path) -> bool:
    try:
        content = library.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]
