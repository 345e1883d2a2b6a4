"""The toolbar below the prompt."""

from collections.abc import Iterator, Sequence

from prompt_toolkit.application import get_app
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.key_binding.vi_state import InputMode
from prompt_toolkit.utils import get_cwidth

from localgemma_cli.backends.base import Backend
from localgemma_cli.events import LoadProgress
from localgemma_cli.render.base import Answer
from localgemma_cli.render.progress import describe_progress
from localgemma_cli.sanitize import one_line

_LABEL_COLUMNS = 20  # that the first part keeps


def format_toolbar(
    label: str, backend: Backend | None, progress: LoadProgress, last: Answer | None, attached: int
) -> str:
    """The model, then what is known: load progress without a backend, else tokens, speed, attached files."""
    mode = _vi_mode()
    head = [label, *([mode] if mode else [])]
    if backend is None:
        return _fit([*head, describe_progress(progress), "you can type now"])
    known = _figures(last, backend.context_length) if last else ("/help",)
    return _fit([*head, *known, *([f"{attached} attached"] if attached else [])])


def _fit(parts: Sequence[str]) -> str:
    """As many parts as fit the terminal; a long first part keeps its end, since that names a path best."""
    columns = get_app().output.get_size().columns
    first, *rest = map(one_line, parts)
    others = "".join(f" · {part}" for part in rest)
    bar = " " + _end_of(first, max(columns - get_cwidth(others) - 2, _LABEL_COLUMNS))
    for part in rest:
        if get_cwidth(f"{bar} · {part}") < columns:
            bar += f" · {part}"
    return bar


def _vi_mode() -> str | None:
    """The mode the prompt is in; None if its keys are not vi's."""
    app = get_app()
    if app.editing_mode != EditingMode.VI:
        return None
    mode = app.vi_state.input_mode
    return {InputMode.NAVIGATION: "normal"}.get(mode, mode.value.removeprefix("vi-").replace("-", " "))


def _end_of(text: str, columns: int) -> str:
    if get_cwidth(text) <= columns:
        return text
    while get_cwidth(text) > columns - 1:
        text = text[1:]
    return f"…{text}"


def _figures(answer: Answer, context: int | None) -> Iterator[str]:
    """Tokens and speed, as far as they were counted."""
    usage, rate = answer.finished.usage, answer.finished.timing.decode_tokens_per_second
    if usage.prompt_tokens is not None and usage.completion_tokens is not None:
        used = usage.prompt_tokens + usage.completion_tokens
        yield f"{used}/{context} tokens" if context else f"{used} tokens"
    if rate is not None:
        yield f"{rate:.1f} tok/s"
