"""Format plans for people: one as lines of text, all of them as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from localgemma_cli.planning.layer_split import LayerShare
from localgemma_cli.planning.load_plan import LoadPlan
from localgemma_cli.sanitize import one_line
from localgemma_cli.units import format_bytes

if TYPE_CHECKING:  # importing rich takes a tenth of a second, and `--json` does not need it
    from rich.table import Table
    from rich.text import Text

NARROW = 76  # columns; the table of all plans needs this many
_STYLES: Mapping[str, str] = {"fits": "green", "offload": "yellow", "no": "red"}


def plan_text(plan: LoadPlan, columns: int) -> str:
    """One plan as aligned lines without colours; long lines wrap with an indent."""
    memory = plan.memory
    rows = (
        ("model", f"{plan.model.name}: {plan.model.summary}"),
        ("preset", f"{plan.preset}, on {plan.device}"),
        ("weights", f"{format_bytes(memory.weights_bytes)}, {_weights(plan)}"),
        ("cache", f"{format_bytes(memory.kv_cache_bytes)}, {plan.cache}, for {plan.context_length} tokens"),
        ("workspace", f"{format_bytes(memory.workspace_bytes)}, with {_step(plan)}"),
        *_elsewhere(plan),
        *_headed("devices", (_share(share) for share in plan.shares)),
        (
            "total",
            f"{format_bytes(memory.total_bytes)} of {format_bytes(memory.available_bytes)}"
            f" usable: {_verdict(plan)}",
        ),
        *_headed("why", plan.reasons),
        *_headed("warning", plan.warnings),
    )
    return "\n".join(_row(head, one_line(line), columns) for head, line in rows)


def _row(head: str, line: str, columns: int) -> str:
    lead = f"{head:<10} "
    indent = " " * len(lead)
    return fill(line, columns, initial_indent=lead, subsequent_indent=indent, break_on_hyphens=False)


def plans_table(plans: Sequence[LoadPlan]) -> Table:
    """A row per model and a column per preset; a dash means that the preset cannot work for the model."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    presets = tuple(dict.fromkeys(plan.preset for plan in plans))
    cells = {(plan.model.name, plan.preset): plan for plan in plans}
    models = tuple(dict.fromkeys(plan.model.name for plan in plans))
    complete = len(cells) == len(models) * len(presets)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.caption, table.caption_justify = _caption(plans, complete), "left"
    for heading in ("model", *presets):
        # long model names wrap, so that the verdicts fit in 80 columns
        first = heading == "model"
        table.add_column(Text(heading), no_wrap=not first, max_width=20 if first else None, overflow="fold")
    for name in models:
        table.add_row(Text(name), *(_cell(cells.get((name, preset))) for preset in presets))
    return table


def plans_list(plans: Sequence[LoadPlan]) -> Text:
    """The same for a narrow terminal: each model, with its presets below it."""
    from rich.text import Text

    presets = tuple(dict.fromkeys(plan.preset for plan in plans))
    cells = {(plan.model.name, plan.preset): plan for plan in plans}
    models = tuple(dict.fromkeys(plan.model.name for plan in plans))
    widest = max(map(len, presets), default=0)
    text = Text()
    for name in models:
        text.append(f"{name}\n", "bold")
        for preset in presets:
            text.append(f"  {preset:<{widest}}  ").append(_cell(cells.get((name, preset)), 8)).append("\n")
    return text.append(_caption(plans, len(cells) == len(models) * len(presets)))


def _cell(plan: LoadPlan | None, width: int = 0) -> Text:
    from rich.text import Text

    if plan is None:
        return Text("—")
    verdict = _verdict(plan)
    cell = Text(f"{format_bytes(plan.memory.total_bytes):>{width}} ")
    return cell.append(verdict, _STYLES[verdict])


def _verdict(plan: LoadPlan) -> str:
    if not plan.memory.fits:
        return "no"
    return "fits" if plan.offload == "none" else "offload"


def _caption(plans: Sequence[LoadPlan], complete: bool) -> Text:
    from rich.text import Text

    usable = format_bytes(plans[0].memory.available_bytes) if plans else "nothing"
    lines = [f"{usable} usable; weights, cache and workspace counted."]
    if any(_verdict(plan) == "offload" for plan in plans):
        lines.append("offload: some layers stay on the host or on disk, which is slow.")
    if not complete:
        lines.append("—: cannot work here.")
    return Text("\n".join(lines))


def _weights(plan: LoadPlan) -> str:
    if plan.quantization == "gguf" and plan.model.stored:
        return plan.model.stored.words
    if plan.quantization == "none":
        return f"{plan.dtype} in 12 bits" if plan.compact else plan.dtype
    nested = " with nested scales" if plan.nested_quantization else ""
    return f"{plan.quantization}{nested}, arithmetic in {plan.dtype}"


def _step(plan: LoadPlan) -> str:
    step = {"none": "", "graph": ", recorded (graph)"}.get(plan.compile, f", compiled ({plan.compile})")
    if plan.attention == "llama.cpp":
        return plan.attention
    return f"{plan.attention} attention{step}"


def _elsewhere(plan: LoadPlan) -> Iterator[tuple[str, str]]:
    if plan.memory.host_bytes:
        yield "on host", format_bytes(plan.memory.host_bytes)
    if plan.memory.disk_bytes:
        yield "on disk", format_bytes(plan.memory.disk_bytes)


def _share(share: LayerShare) -> str:
    memory = f"{format_bytes(share.bytes)} of {format_bytes(share.available_bytes)} free"
    return f"layers {share.first + 1} to {share.last + 1}, {memory}: GPU {share.index}, {share.name}"


def _headed(head: str, lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Rows for the lines, with the head beside the first one."""
    for number, line in enumerate(lines):
        yield ("" if number else head), line
