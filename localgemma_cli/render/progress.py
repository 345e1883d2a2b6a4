"""Download and load, told on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from localgemma_cli.events import LoadProgress, ProgressSink
from localgemma_cli.render.sanitize import one_line


def describe(progress: LoadProgress) -> str:
    """A few words for a status line: `downloading 1.2 of 5.2 GB`."""
    if progress.total and progress.unit == "bytes":
        return f"{progress.stage} {progress.done / 1e9:.1f} of {progress.total / 1e9:.1f} GB"
    if progress.total:
        return f"{progress.stage} {100 * progress.done // progress.total}%"
    return progress.stage


def silent(_: LoadProgress) -> None:
    pass


@contextmanager
def on_stderr(stderr: TextIO, *, quiet: bool) -> Iterator[ProgressSink]:
    """A spinner with the latest stage, gone when done; silent with `quiet` and off a terminal."""
    if quiet or not stderr.isatty():
        yield silent
        return
    from rich.text import Text

    from localgemma_cli.render.console import SafeConsole

    with SafeConsole(stderr).status("starting") as status:
        yield lambda progress: status.update(Text(one_line(describe(progress))))
