"""How many conversations are kept at a time, and how many answers are computed at a time."""

from dataclasses import replace

from localgemma_cli.planning.load_plan import LoadPlan
from localgemma_cli.units import format_bytes

MOST_ROWS = 8


def plan_rows(plan: LoadPlan) -> LoadPlan:
    """The plan with as many rows as there is memory for, each with a KV cache for a whole context.

    One row with PyTorch on a GPU, where layers are offloaded, and with llama.cpp: the greedy answers of its
    parallel slots differ from those of one at a time.
    """
    if plan.offload != "none" or plan.processes > 1 or plan.draft is not None:
        return plan
    if plan.device != "cpu" or plan.quantization == "gguf":
        return plan
    return _with_caches(plan, "rows: up to {} answers at a time, each with a KV cache of {}")


def plan_conversations(plan: LoadPlan) -> LoadPlan:
    """The plan with KV caches for as many conversations as there is memory for, answered one at a time.

    One where several processes compute, since only the first of them knows which conversation comes.
    """
    if plan.processes > 1:
        return plan
    return _with_caches(plan, "conversations: up to {} are kept, each with a KV cache of {}")


def _with_caches(plan: LoadPlan, reason: str) -> LoadPlan:
    memory, each = plan.memory, plan.memory.kv_cache_bytes
    rows = 1 + max(0, memory.available_bytes - memory.total_bytes) // max(each, 1)
    if rows == 1:
        return plan
    rows = min(rows, MOST_ROWS)
    return replace(
        plan,
        rows=rows,
        memory=replace(memory, kv_cache_bytes=rows * each),
        reasons=(*plan.reasons, reason.format(rows, format_bytes(each))),
    )
