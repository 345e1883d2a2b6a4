"""How many answers are computed at a time."""

from dataclasses import replace

from localgemma_cli.models.catalog import lookup
from localgemma_cli.planning.hardware import GIB, Hardware
from localgemma_cli.planning.load_plan import LoadPlan
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import Presets
from localgemma_cli.planning.rows import MOST_ROWS, plan_conversations, plan_rows


def planned(presets: Presets, machine: Hardware, context: int = 4096) -> LoadPlan:
    return make_plan(lookup("2b"), "exact", machine, Overrides(context=context), presets)


def test_each_row_has_a_kv_cache_in_the_plan(presets: Presets, desktop_cpu: Hardware) -> None:
    one = planned(presets, desktop_cpu)
    more = plan_rows(one)
    assert (one.rows, more.rows) == (1, MOST_ROWS)
    assert more.memory.kv_cache_bytes == MOST_ROWS * one.memory.kv_cache_bytes
    assert more.reasons[-1] == "rows: up to 8 answers at a time, each with a KV cache of 0.4 GB"


def test_there_are_as_many_rows_as_fit(presets: Presets, desktop_cpu: Hardware) -> None:
    one = planned(presets, desktop_cpu)
    free = one.memory.total_bytes + one.memory.kv_cache_bytes * 5 // 2
    few = plan_rows(replace(one, memory=replace(one.memory, available_bytes=free)))
    assert few.rows == 3
    assert few.memory.fits
    assert plan_rows(replace(one, memory=replace(one.memory, available_bytes=GIB))).rows == 1


def test_pytorch_on_a_gpu_has_one_row(presets: Presets, gpu: Hardware) -> None:
    assert plan_rows(planned(presets, gpu)).rows == 1


def test_a_gpu_keeps_several_conversations(presets: Presets, gpu: Hardware) -> None:
    one = planned(presets, gpu)
    kept = plan_conversations(one)
    assert kept.rows > 1
    assert kept.memory.kv_cache_bytes == kept.rows * one.memory.kv_cache_bytes
    assert kept.memory.fits
    assert kept.reasons[-1].startswith(f"conversations: up to {kept.rows} are kept")
    assert plan_conversations(replace(one, processes=2)).rows == 1
