"""Tensors in a mapped file: their pages come when touched, and can be let go of without loss.

A touched row may bring 2 MB with it: Linux maps whole folios, and a file that was written in large pieces
lies in the largest. A hundred rows of a table added 190 MB to a process that had read half a megabyte.
"""

import ctypes
import mmap
from functools import cache

import torch

_MADV_DONTNEED = 4  # Linux: <bits/mman-linux.h>
_ROWS = 32  # looked up between two times of letting go: 64 MB at most


def let_go(tensor: torch.Tensor) -> None:
    """Drop the resident pages of a mapped file's tensor; they come back from the file where still needed."""
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


@cache
def _libc() -> ctypes.CDLL:
    """Once: each opening leaves classes behind that only a garbage collection frees."""
    return ctypes.CDLL(None)


def in_file(tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory belongs to a file: only then may its pages be dropped without loss."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            for line in maps:
                bounds, _, _, _, inode, *_ = line.split()
                first, last = (int(bound, 16) for bound in bounds.split("-"))
                if first <= tensor.data_ptr() < last:
                    return inode != "0"
    except FileNotFoundError:  # not Linux
        return False
    return False


def rows_of(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows of a table in a file, ids [...] -> [..., width]; few of its pages are in memory at a time."""
    found = []
    for some in ids.flatten().split(_ROWS):
        found.append(torch.nn.functional.embedding(some, table))
        let_go(table)
    return torch.cat(found).view(*ids.shape, -1)
