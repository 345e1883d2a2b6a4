"""Steps of several answers that are computed at a time, with one read of the weights."""

from collections.abc import Generator, Sequence

import torch
from transformers.cache_utils import Cache

from localgemma_cli.backends.many import WAITING
from localgemma_cli.backends.pytorch.generation.cpu_step import CpuStep
from localgemma_cli.events import Reading


class RowStep:
    """The step of one answer, which waits for those of the others."""

    def __init__(self) -> None:
        self.wanted: tuple[int, Cache] | None = None  # a token, and the cache before it
        self.logits = torch.empty(0)

    def compute(self, token: int, cache: Cache) -> Generator[Reading, None, torch.Tensor]:
        """Yield `WAITING` until `compute_steps` has the logits [1, vocabulary] in float32; return them."""
        self.wanted = token, cache
        try:
            while self.wanted is not None:
                yield WAITING
        finally:
            self.wanted = None
        return self.logits


@torch.inference_mode()
def compute_steps(step: CpuStep, rows: Sequence[RowStep]) -> None:
    """Compute the steps that are waited for, together."""
    waiting = [(row, *row.wanted) for row in rows if row.wanted is not None]
    logits = step.step_rows([token for _, token, _ in waiting], [cache for _, _, cache in waiting])
    for index, (row, _, _) in enumerate(waiting):
        row.logits, row.wanted = logits[index : index + 1], None
