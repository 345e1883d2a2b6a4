"""Our own products in C, compiled at first use by the machine's compiler and kept in the cache folder."""

import ctypes
import functools
import hashlib
import os
import platform
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch  # before a library: it brings the OpenMP runtime that all share

from localgemma_cli.environment import cache_folder, is_ours, make_private
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
        folder = make_private(cache_folder() / "kernels")
        if not is_ours(folder.stat()):
            raise PermissionError(f"others may write to {folder}")
        try:
            return _load(folder / name)
        except _NotWhole:
            _compile(command, source, folder / name)
            return _load(folder / name)
    except (OSError, _NotWhole):
        with tempfile.TemporaryDirectory() as own:  # what is open stays so
            _compile(command, source, Path(own) / name)
            return _load(Path(own) / name)


class _NotWhole(Exception):
    """A library that is not there, not as it was made, or not certainly this user's."""


def _load(library: Path) -> ctypes.CDLL:
    """What was checked is what is loaded: both by the descriptor, whatever the path names by then.

    It stays open: the loader takes the same name again, of another descriptor, for the library it has.
    """
    try:
        descriptor = os.open(library, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:  # not there, a link, a socket
        raise _NotWhole from error
    try:
        about = os.fstat(descriptor)
        if not (stat.S_ISREG(about.st_mode) and about.st_nlink == 1 and is_ours(about)):
            raise _NotWhole
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read()
        if hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
            raise _NotWhole
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except BaseException:
        os.close(descriptor)
        raise


def _compile(command: tuple[str, ...], source: Path, library: Path) -> None:
    """Its digest goes behind it, where no loader looks: what is cut short would end the process."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        words = (*command, f"-I{_FOLDER}", "-o", str(made), str(source))
        subprocess.run(words, capture_output=True, timeout=_PATIENCE, check=True)
        content = made.read_bytes()
        made.write_bytes(content + hashlib.sha256(content).digest())
        made.chmod(0o600)  # whatever the umask was
        os.replace(made, library)
