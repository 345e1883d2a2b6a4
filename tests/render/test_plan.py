"""Plans as people see them, on a terminal of 80 columns and off one."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from localgemma_cli.models.catalog import lookup
from localgemma_cli.planning.hardware import GIB, describe_hardware
from localgemma_cli.planning.plan import Overrides, make_plan, plan_all
from localgemma_cli.planning.presets import load_presets
from localgemma_cli.render.plan import plan_text, plans_table


@pytest.fixture
def presets(tmp_path):
    return load_presets(tmp_path)


def printed(table, colours=None):
    stream = io.StringIO()
    Console(file=stream, width=80, force_terminal=bool(colours), color_system=colours).print(table)
    return stream.getvalue()


def test_one_plan_shows_its_parts_its_sum_and_its_reasons(presets):
    plan = make_plan(lookup("27b"), None, describe_hardware("cuda", 24 * GIB, 64 * GIB), Overrides(), presets)
    lines = plan_text(plan, 200).splitlines()
    heads = [line[:10].strip() for line in lines]
    assert heads[:6] == ["model", "preset", "weights", "cache", "workspace", "total"]
    assert "preset     memory, on cuda" in lines
    assert f"weights    {plan.memory.weights_bytes / 1e9:.1f} GB, nf4, arithmetic in bfloat16" in lines
    assert any(line.startswith("total") and line.endswith("of 23.2 GB usable: fits") for line in lines)
    assert heads.count("why") == 1
    assert len([line for line in lines if line.startswith("why") or line.startswith(" ")]) == len(
        plan.reasons
    )
    assert "\x1b" not in plan_text(plan, 200)
    narrow = plan_text(plan, 40).splitlines()
    assert max(map(len, narrow)) <= 40
    assert all(line[10] == " " != line[11] for line in narrow)  # a row's words below each other
    assert " ".join(line[11:] for line in narrow) == " ".join(line[11:] for line in lines)


def test_offloaded_layers_are_shown_with_their_place(presets):
    plan = make_plan(lookup("27b"), None, describe_hardware("cuda", 8 * GIB, 8 * GIB), Overrides(), presets)
    assert plan.memory.host_bytes
    assert plan.memory.disk_bytes
    text = plan_text(plan, 200)
    assert f"on host    {plan.memory.host_bytes / 1e9:.1f} GB" in text
    assert f"on disk    {plan.memory.disk_bytes / 1e9:.1f} GB" in text
    assert "usable: offload" in text
    assert "warning" in text


def test_a_compiled_plan_is_shown_as_compiled(presets):
    plan = make_plan(lookup("2b"), "speed", describe_hardware("cuda", 24 * GIB, None), Overrides(), presets)
    assert "eager attention, compiled (reduce-overhead)" in plan_text(plan, 200)
    exact = make_plan(lookup("2b"), "exact", describe_hardware("cuda", 24 * GIB, None), Overrides(), presets)
    assert "eager attention, recorded (graph)" in plan_text(exact, 200)


def test_all_plans_fit_in_80_columns_with_every_verdict(presets):
    table = plans_table(plan_all(describe_hardware("cuda", 8 * GIB, 64 * GIB), Overrides(), presets))
    lines = printed(table).splitlines()
    assert max(len(line) for line in lines) <= 80
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert rows["model"].split() == ["model", "exact", "speed", "memory", "memory_extreme"]
    assert rows["2b"].count("fits") == 4
    assert (rows["9b"].count("no"), rows["9b"].count("offload")) == (3, 1)
    assert (rows["27b"].count("no"), rows["27b"].count("offload")) == (3, 1)
    assert {"7b", "27b", "demo"} <= set(rows)
    assert "7.7 GB usable" in "".join(lines)
    assert "…" not in "".join(lines)


def test_a_dash_marks_what_cannot_work(presets):
    machine = describe_hardware("cuda", 24 * GIB, None, compute_capability=(5, 2))
    unquantized = plan_all(machine, Overrides(), presets)
    ordinary = [plan for plan in unquantized if plan.model.stored is None]
    assert {plan.preset for plan in ordinary} == {"exact", "speed"}
    gpu = describe_hardware("cuda", 24 * GIB, None)
    text = printed(plans_table([*plan_all(gpu, Overrides(context=1024), presets)][:6]))
    assert text.count("—") == 2 + 1
    assert "—: cannot work here" in text


def test_colour_is_only_for_terminals(presets):
    plans = plan_all(describe_hardware("cuda", 24 * GIB, None), Overrides(), presets)
    assert "\x1b" not in printed(plans_table(plans))
    assert "\x1b[32mfits" in printed(plans_table(plans), colours="standard")


def test_a_models_name_is_not_parsed_as_markup(presets):
    gpu = describe_hardware("cuda", 24 * GIB, None)
    plan = make_plan(replace(lookup("2b"), name="[red]mine"), "exact", gpu, Overrides(), presets)
    assert "[red]mine" in printed(plans_table([plan]))
