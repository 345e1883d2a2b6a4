"""Tensors in a mapped file: released pages are read again, and reading rows keeps few pages in memory."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from localgemma_cli.backends.pytorch.weights.mmap_tensors import is_mapped, read_rows, release_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture
def table(tmp_path: Path) -> torch.Tensor:
    """64 MB, just written: as a download leaves it, in the page cache's largest pieces."""
    numbers = torch.arange(32 << 20, dtype=torch.int32).to(torch.bfloat16).view(16_384, 2048)
    save_file({"table": numbers}, tmp_path / "table.safetensors")
    return load_file(tmp_path / "table.safetensors")["table"]


def resident(tensor: torch.Tensor) -> int:
    """Bytes of the tensor's mapping that are in this process's memory."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= tensor.data_ptr() + tensor.nbytes // 2 < int(bounds[2], 16)
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the tensor is in no mapping")


def test_allocated_memory_is_not_mapped(table: torch.Tensor) -> None:
    assert is_mapped(table)
    assert not is_mapped(torch.ones(1 << 20))


def test_released_pages_are_read_again(table: torch.Tensor) -> None:
    total = float(table.sum(dtype=torch.float64))
    assert resident(table) > table.nbytes // 2
    release_pages(table)
    assert resident(table) < 1 << 20
    assert float(table.sum(dtype=torch.float64)) == total


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (3, 40)])
def test_rows_are_an_embeddings_and_their_pages_do_not_stay(
    table: torch.Tensor, shape: tuple[int, int]
) -> None:
    release_pages(table)
    ids = torch.randint(0, len(table), shape, generator=torch.Generator().manual_seed(0))
    found = read_rows(table, ids)
    assert resident(table) < 1 << 20
    assert torch.equal(found, torch.nn.functional.embedding(ids, table))
