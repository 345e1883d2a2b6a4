"""What the bar below the prompt says."""

from collections.abc import Iterator, Sequence

from prompt_toolkit.application import get_app
from prompt_toolkit.utils import get_cwidth

from localgemma_cli.render.base import Answer
from localgemma_cli.render.sanitize import one_line


def fitted(parts: Sequence[str]) -> str:
    """As many of `parts` as the terminal is wide for."""
    columns = get_app().output.get_size().columns
    first, *rest = map(one_line, parts)
    bar = " " + first
    for part in rest:
        if get_cwidth(f"{bar} · {part}") < columns:
            bar += f" · {part}"
    return bar


def figures(answer: Answer, context: int | None) -> Iterator[str]:
    """What is known of them: a server need not count."""
    usage, rate = answer.finished.usage, answer.finished.timing.decode_tokens_per_second
    if usage.prompt_tokens is not None and usage.completion_tokens is not None:
        used = usage.prompt_tokens + usage.completion_tokens
        yield f"{used}/{context} tokens" if context else f"{used} tokens"
    if rate is not None:
        yield f"{rate:.1f} tok/s"
