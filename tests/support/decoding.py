"""The ids that a model generates, without the word of how far it is."""

from collections.abc import Iterator
from typing import Any

from localgemma_cli.backends.pytorch.generation import decode as decoding
from localgemma_cli.events import Reading


def generate(*arguments: Any, **options: Any) -> Iterator[int]:
    events = decoding.generate(*arguments, **options)
    return (each for each in events if not isinstance(each, Reading))
