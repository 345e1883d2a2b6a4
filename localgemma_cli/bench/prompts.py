"""Random prompts as token ids, the same for every engine."""

import random

from localgemma_cli.bench.job import Workload


def random_ids(vocabulary: int, count: int, seed: int, name: object) -> tuple[int, ...]:
    """Random ids, equal for equal arguments on every machine; without the first ids, which are special."""
    source = random.Random(f"{seed} {name}")
    first = min(256, vocabulary // 2)
    return tuple(source.randrange(first, vocabulary) for _ in range(count))


def prompt_ids(vocabulary: int, workload: Workload, seed: int, repeat: int) -> tuple[int, ...]:
    """The prompt of one run; no two share a prefix, so that the cache never helps."""
    return random_ids(vocabulary, workload.prompt_tokens, seed, f"{workload} {repeat}")
