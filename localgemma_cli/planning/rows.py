"""How many answers are computed at a time, where there are many to compute."""

from dataclasses import replace

from localgemma_cli.planning.load_plan import LoadPlan
from localgemma_cli.units import format_bytes

MOST_ROWS = 8


def plan_rows(plan: LoadPlan) -> LoadPlan:
    """The plan with as many rows as there is memory for, each with a KV cache for a whole context.

    One row where more are not computed faster: with PyTorch on a GPU, and where layers are offloaded.
    """
    memory = plan.memory
    if plan.offload != "none" or plan.processes > 1 or plan.draft is not None:
        return plan
    if plan.device != "cpu" and plan.quantization != "gguf":
        return plan
    each = memory.kv_cache_bytes
    rows = 1 + max(0, memory.available_bytes - memory.total_bytes) // max(each, 1)
    if rows == 1:
        return plan
    rows = min(rows, MOST_ROWS)
    reason = f"rows: up to {rows} answers at a time, each with a KV cache of {format_bytes(each)}"
    return replace(
        plan,
        rows=rows,
        memory=replace(memory, kv_cache_bytes=rows * each),
        reasons=(*plan.reasons, reason),
    )
