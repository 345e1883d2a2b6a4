"""Under `torchrun` the program runs in several processes: the first leads, the others follow it."""

import os

from localgemma_cli.environment import torchrun_rank


def follow_torchrun() -> int | None:
    """The exit code of a process that follows, once the first one has ended; None in the one that leads."""
    rank = torchrun_rank(os.environ)
    if rank is None or rank.index == 0:
        return None
    from localgemma_cli.backends.pytorch.tensor_parallel import follow

    return follow()


def count_processes() -> int:
    """How many processes share a model's layers; 1 without torchrun."""
    rank = torchrun_rank(os.environ)
    return rank.count if rank else 1
