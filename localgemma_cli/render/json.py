"""`--json` and `--jsonl`: the contract with scripts, described by `schemas/*.schema.json`."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TextIO

from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.render.base import Answer

SCHEMA = 1
# What may drive a terminal and JSON may hold as it is: DEL, C1, line separators, bidirectional controls.
_UNSEEN = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Run:
    """What is the same for every answer of a process; a server has neither preset nor plan."""

    model: str
    preset: str | None
    backend: str
    load_seconds: float
    plan: Mapping[str, object] | None


def answer_object(run: Run, answer: Answer) -> dict[str, object]:
    finished = answer.finished
    return {
        "schema": SCHEMA,
        "model": run.model,
        "preset": run.preset,
        "backend": run.backend,
        "thinking": answer.thinking or None,
        "response": answer.text,
        "finish_reason": finished.finish_reason,
        "usage": asdict(finished.usage),
        "timing": {"load_seconds": run.load_seconds, **asdict(finished.timing)},
        "plan": run.plan,
    }


def error_object(error: LocalGemmaError) -> dict[str, object]:
    return {"error": {"kind": error.kind, "message": error.message, "hint": error.hint}}


def write_line(stream: TextIO, value: Mapping[str, object]) -> None:
    text = json.dumps(value, ensure_ascii=not _is_unicode(stream))
    stream.write(_UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
    stream.flush()


class JsonRenderer:
    """One object when the answer is whole; nothing before, so that stdout never holds half of one."""

    def __init__(self, stdout: TextIO, run: Run) -> None:
        self._stdout, self._run = stdout, run

    def thinking(self, text: str) -> None:
        pass

    def delta(self, text: str) -> None:
        pass

    def finish(self, answer: Answer) -> None:
        write_line(self._stdout, answer_object(self._run, answer))

    def abort(self) -> None:
        pass


class JsonLinesRenderer:
    """A start line, a line per piece of thinking and answer, and an end line: the `--json` object."""

    def __init__(self, stdout: TextIO, run: Run) -> None:
        self._stdout, self._run = stdout, run
        start = {
            "event": "start",
            "schema": SCHEMA,
            "model": run.model,
            "preset": run.preset,
            "backend": run.backend,
        }
        write_line(stdout, start)

    def thinking(self, text: str) -> None:
        write_line(self._stdout, {"event": "thinking", "text": text})

    def delta(self, text: str) -> None:
        write_line(self._stdout, {"event": "delta", "text": text})

    def finish(self, answer: Answer) -> None:
        write_line(self._stdout, {"event": "end", **answer_object(self._run, answer)})

    def abort(self) -> None:
        pass


def _is_unicode(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "").startswith("utf")
