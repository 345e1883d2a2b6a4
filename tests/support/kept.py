"""A program whose calls keep their model in a process, which ends with the test."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.program import HELD, Program

KEEP = ("--keep-alive", "10m")


@contextmanager
def keeping_program() -> Iterator[Program]:
    """In a folder of its own, with a path that is short enough for a socket; its long answers are HELD."""
    folder = Path(tempfile.mkdtemp(prefix="lg-"))
    program = Program(folder, before=HELD)
    try:
        yield program
    finally:
        for row in kept_rows(program):
            with suppress(ProcessLookupError):
                os.kill(int(str(row["pid"])), signal.SIGKILL)
        shutil.rmtree(folder)


def kept_rows(program: Program) -> list[dict[str, object]]:
    """What `localgemma ps --json` lists."""
    done = program("ps", "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, object]] = json.loads(done.stdout)["kept"]
    return rows


def kept_socket(program: Program) -> Path:
    """The only socket."""
    (path,) = (program.folder / "home/run").glob("*.kept")
    return path
