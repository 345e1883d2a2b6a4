"""Rows for `localgemma batch`, its results, and the program while it runs."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from support import warm_start
from support.program import Program

QUESTIONS = ("Who are you?", "What is int4?", "What is NF4?", "What is a preset?", "How do I quit?")
WORDS = ("batch", "-m", "demo", "--temperature", "0")


def questions(count: int) -> list[dict[str, object]]:
    """Rows with ids, whose answers are short."""
    return [
        {"id": f"row {n}", "prompt": QUESTIONS[n % len(QUESTIONS)], "max_new_tokens": 4 + n % 3}
        for n in range(count)
    ]


def json_lines(rows: Sequence[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def results_of(text: str) -> list[dict[str, object]]:
    """The objects of whole lines only."""
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def without_reuse(results: Sequence[Mapping[str, object]]) -> list[object]:
    """Results without how much of a prompt was in the KV cache, which depends on the rows before."""
    return [
        {key: value for key, value in each.items() if key != "usage"}
        | {"usage": {**each["usage"], "cached_prompt_tokens": None}}  # type: ignore[dict-item]
        if "usage" in each
        else each
        for each in results
    ]


def wait_for_lines(path: Path, count: int, seconds: float = 300) -> None:
    """Wait until the file has so many lines."""
    deadline = time.monotonic() + seconds
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, "no more results came"
        time.sleep(0.002)


@dataclass
class Running:
    """The program with pipes for its input and output; `errors` is a file."""

    pid: int
    stdin: BinaryIO
    stdout: BinaryIO
    errors: Path

    def wait(self) -> int:
        """Its exit code; the negative number of a signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def running(program: Program, *words: str) -> Iterator[Running]:
    """`localgemma WORDS`, started; the caller waits for it."""
    (given, giving), (printing, printed) = os.pipe(), os.pipe()
    errors = program.folder / "errors"
    with open(errors, "wb") as told, open(giving, "wb", 0) as stdin, open(printing, "rb") as stdout:
        pid = warm_start.start(words, (given, printed, told.fileno()), cwd=program.folder, env=program.env)
        os.close(given)
        os.close(printed)
        yield Running(pid, stdin, stdout, errors)
