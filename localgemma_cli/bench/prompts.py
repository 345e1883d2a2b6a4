"""Prompts that need no tokenizer, the same for every engine."""

import random

from localgemma_cli.bench.job import Workload


def random_ids(vocabulary: int, count: int, seed: int, name: object) -> tuple[int, ...]:
    """The same for the same arguments on every machine; none of the first ids, which mean more than text."""
    source = random.Random(f"{seed} {name}")
    first = min(256, vocabulary // 2)
    return tuple(source.randrange(first, vocabulary) for _ in range(count))


def prompt_ids(vocabulary: int, workload: Workload, seed: int, repeat: int) -> tuple[int, ...]:
    """No two workloads or repeats begin alike, so that a kept cache is of no use to the next."""
    return random_ids(vocabulary, workload.prompt_tokens, seed, f"{workload} {repeat}")
