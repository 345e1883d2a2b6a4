"""Tensors in a mapped file: their pages are loaded on access, and can be released without losing data.

Reading one row may load 2 MB: Linux maps whole folios, and a file that was written in large pieces has the
largest. A hundred rows of a table added 190 MB to a process that had read half a megabyte.
"""

import ctypes
import mmap
from functools import cache

import torch

_MADV_DONTNEED = 4  # Linux: <bits/mman-linux.h>
_ROWS = 32  # rows that are read before pages are released: 64 MB at most


def release_pages(tensor: torch.Tensor) -> None:
    """Drop a mapped file's tensor from memory, whole pages only; the next access reads the file again."""
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


@cache
def _libc() -> ctypes.CDLL:
    """Open the C library once: every opening creates classes that only garbage collection frees."""
    return ctypes.CDLL(None)


def is_mapped(tensor: torch.Tensor) -> bool:
    """Return whether the tensor's memory is a mapped file: only then can its pages be released safely."""
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


def read_rows(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Look up rows of a mapped table, ids [...] -> [..., width], keeping few of its pages in memory."""
    found = []
    for some in ids.flatten().split(_ROWS):
        found.append(torch.nn.functional.embedding(some, table))
        release_pages(table)
    return torch.cat(found).view(*ids.shape, -1)
