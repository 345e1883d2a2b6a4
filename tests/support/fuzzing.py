"""Random contents of files, and the program run over them in this process."""

import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from localgemma_cli.cli import run
from localgemma_cli.environment import Streams

FULL = int(os.environ.get("LOCALGEMMA_FUZZ", "0"))
HANG = 60  # seconds; on a machine that is busy with other things as well
GROWTH = 200_000_000  # bytes
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

NUMBERS = ["0", "-1", "1", "2", "3", "33", "1.5", "1e-40", "1e308", "1e999", "-0.0", "10000000000"]
NUMBERS += ["9" * 25, "9" * 400, "-" + "9" * 5000, "NaN", "Infinity", "-Infinity", "1000000000"]
TEXTS = [
    '""',
    '"x"',
    r'"\u001b]52;c;UFdO\u0007"',
    r'"\ud83d"',
    '"%s"' % ("x" * 5000),
    r'"\u0000"',
    '"../../x"',
]
OTHERS = ["null", "true", "false", "[]", "{}", "[[1]]", "[null]", '[1,"x"]', '{"a":1}', '{"a":{"b":[null]}}']
DEEP = ["[" * 10_000, "[" * 300 + "]" * 300, '{"a":' * 500 + "1" + "}" * 500]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
HOSTILE = st.sampled_from(NUMBERS + TEXTS + OTHERS + DEEP) | JSON.map(json.dumps)


@dataclass(frozen=True)
class Done:
    """`growth`: of the resident memory at its peak, in bytes; 0 where the system does not tell."""

    code: int
    stderr: str
    seconds: float
    growth: int


def memory(key: str) -> int:
    """Of this process, in bytes, from Linux' own count."""
    if not sys.platform.startswith("linux"):
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def program(*words: str) -> Done:
    """As `main` runs it, in this process."""
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    if sys.platform.startswith("linux"):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before, start = memory("VmRSS"), time.monotonic()
    with open(os.devnull, encoding="utf-8") as stdin, pytest.MonkeyPatch.context() as patch:
        for name, stream in (("stdin", stdin), ("stdout", stdout)):
            patch.setattr(sys, name, stream)
        code = run(words, Streams(stdin, stdout, stderr))
    stderr.flush()
    told = stderr.buffer.getvalue().decode()  # type: ignore[attr-defined]
    return Done(code, told, time.monotonic() - start, memory("VmHWM") - before)


def require_one_error(done: Done, codes: tuple[int, ...]) -> None:
    told = done.stderr
    assert done.code in codes, (done.code, told)
    assert done.seconds < HANG
    assert done.growth < GROWTH
    assert "Unexpected error" not in told
    assert "Traceback" not in told
    assert not CONTROL.search(told), repr(told)
    if done.code:
        message, hint = told.splitlines()  # one line what happened, one what to do, and nothing else
        assert message.startswith("localgemma: ")
        assert hint.startswith("  ")
        assert len(message) < 700


def examples(few: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=FULL or few,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def paths_in(value: object, depth: int = 3) -> list[tuple[str | int, ...]]:
    """Of every place in a JSON value, of long lists and tables the first few."""
    inner: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())[:40]
    elif isinstance(value, list):
        inner = list(enumerate(value))[:3]
    below = [(key, *path) for key, each in inner for path in paths_in(each, depth - 1)] if depth else []
    return [(), *below]


@st.composite
def mutated(draw: st.DrawFn, base: dict[str, Any], more: tuple[str, ...] = (), raws: Any = HOSTILE) -> bytes:
    """A JSON file with one or two values replaced, removed or added, or damaged as bytes."""
    copy = json.loads(json.dumps(base))
    texts: list[str] = []
    places = [*paths_in(base)[1:], *((key,) for key in more)]
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(places))
        owner = copy
        for key in way:
            owner = owner[key] if isinstance(owner, dict | list) and not isinstance(owner, str) else {}
        if isinstance(owner, dict | list) and not (isinstance(owner, list) and last >= len(owner)):  # type: ignore[operator]
            owner[last] = f"@{len(texts)}@"
            texts.append(draw(raws))
    text = json.dumps(copy)
    for number, raw in enumerate(texts):
        text = text.replace(f'"@{number}@"', raw)
    return draw(damaged(text.encode("utf-8", "surrogatepass")))


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Mostly as it is; else cut, with a mark or bytes that are no text, or something else altogether."""
    at = draw(st.integers(0, len(data)))
    match draw(st.integers(0, 19)):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at:]
        case 2:
            return b"\xef\xbb\xbf" + data
        case 3:
            return draw(
                st.sampled_from([b"", b"[]", b"null", b"[" * 10_000, b'"x"', b"9" * 5000, b"\0" * 64])
            )
    return data


def answer(folder: Path) -> Done:
    return program("-m", str(folder / "m"), "--no-save", "--temperature", "0", "--max-new-tokens", "2", "hi")
