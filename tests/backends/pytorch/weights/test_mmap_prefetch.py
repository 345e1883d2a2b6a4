"""Layers that stay in their file: the same answers, and pages that really go."""

import ctypes
import mmap
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.models import DEMO
from support.patience import patience

from localgemma_cli.backends.pytorch.loading.loader import load_model
from localgemma_cli.backends.pytorch.loading.quantized_cache import list_copies, remove_copy
from localgemma_cli.backends.pytorch.weights.mmap_prefetch import Span, add_paging_hooks, find_spans
from localgemma_cli.errors import DiskSpaceError
from localgemma_cli.models.resolve import resolve
from localgemma_cli.models.safetensors_file import map_file
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import LoadPlan, Overrides, make_plan
from localgemma_cli.planning.presets import load_presets

MB = 1 << 20


def silent(_: object) -> None:
    pass


def resident_bytes(path: Path) -> int:
    """What of a mapped file counts as this process's memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return next(int(each.split()[1]) * 1024 for each in lines if each.startswith("Rss:"))
    return 0


class Reads(torch.nn.Module):
    """Touches every page of its span."""

    def __init__(self, weights: mmap.mmap, span: Span) -> None:
        super().__init__()
        self.bytes = torch.frombuffer(weights, dtype=torch.uint8)[span.first : span.last]

    def forward(self) -> int:
        return int(self.bytes[::512].sum())


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("resident", [0, 2, 7])
def test_only_resident_layers_stay_in_memory(tmp_path: Path, resident: int) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"".join(bytes([index]) * (4 * MB) for index in range(8)) + bytes(40))
    weights = map_file(path)
    spans = [Span(40 + index * 4 * MB, 40 + (index + 1) * 4 * MB) for index in range(8)]
    layers = [Reads(weights, span) for span in spans]
    expected = [layer() for layer in layers]
    assert resident_bytes(path) > 7.9 * 4 * MB
    add_paging_hooks(layers, spans, weights, resident)
    most = 0
    for _ in range(2):
        for layer, value in zip(layers, expected, strict=True):
            assert layer() == value
        most = resident_bytes(path)
    assert resident * 4 * MB <= most <= resident * 4 * MB + 0.3 * MB
    assert len(set(expected)) == 8


def cached_pages(weights: mmap.mmap, span: Span) -> int:
    """How many pages of a span the system holds; of a file that nothing has read yet, none."""
    first = span.first // mmap.PAGESIZE * mmap.PAGESIZE
    count = -(-(span.last - first) // mmap.PAGESIZE)
    address = torch.frombuffer(weights, dtype=torch.uint8).data_ptr() + first
    found = (ctypes.c_ubyte * count)()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(span.last - first), found) == 0
    return sum(each & 1 for each in found)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_the_next_layer_is_read_before_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.touch()
    os.truncate(path, 3 * 32 * MB)  # zeros that take no disk
    weights = map_file(path)
    spans = [Span(index * 32 * MB, (index + 1) * 32 * MB) for index in range(3)]
    layers = [torch.nn.Identity() for _ in spans]
    add_paging_hooks(layers, spans, weights, 0)
    pages = 32 * MB // mmap.PAGESIZE
    assert [cached_pages(weights, span) for span in spans] == [0, 0, 0]
    layers[0](torch.zeros(1))
    deadline = time.monotonic() + patience(20)
    while cached_pages(weights, spans[1]) < pages and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [cached_pages(weights, span) for span in spans] == [0, pages, 0]
    layers[2](torch.zeros(1))
    assert cached_pages(weights, spans[0]) > 0  # the next token's first layer


def test_a_span_covers_every_tensor_of_its_layer_and_no_other() -> None:
    places = {"layers.1.a": Span(0, 10), "layers.1.b": Span(10, 30), "layers.10.a": Span(30, 40)}
    assert find_spans(places, ["layers.1.", "layers.10."]) == [Span(0, 30), Span(30, 40)]


def demo_plan(resident: int | None, kind: str | None = None) -> LoadPlan:
    source = resolve("demo", revision=None, offline=True)
    plan = make_plan(
        source.facts, "memory_extreme", probe("cpu"), Overrides(quantization=kind), load_presets()
    )
    offload = "none" if resident is None else "disk"
    return replace(plan, resident_layers=resident, offload=offload)


@pytest.mark.parametrize("kind", ["nf4", "int4"])
@pytest.mark.parametrize("resident", [0, 3])
def test_answers_do_not_depend_on_where_layers_are(resident: int, kind: str) -> None:
    prompt = torch.tensor([[2, 17, 300, 45, 101, 7, 64, 222]])
    whole, paged = (load_model(demo_plan(each, kind), DEMO, silent) for each in (None, resident))
    with torch.inference_mode():
        expected = whole.generate(prompt, max_new_tokens=12, do_sample=False)
        assert torch.equal(paged.generate(prompt, max_new_tokens=12, do_sample=False), expected)
        assert torch.equal(paged(prompt).logits, whole(prompt).logits)


def test_what_fits_neither_in_memory_nor_on_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))
    (tmp_path / "home").write_text("a file: no cache folder can be made in it")
    with pytest.raises(DiskSpaceError, match="cannot be saved"):
        load_model(demo_plan(2), DEMO, silent)
    assert load_model(demo_plan(None), DEMO, silent)


def test_presets_with_the_same_format_share_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    load_model(demo_plan(None), DEMO, silent)
    load_model(replace(demo_plan(2), preset="memory"), DEMO, silent)
    (copy,) = list_copies()
    remove_copy(copy)
