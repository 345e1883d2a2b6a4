"""Write answers and errors as JSON (`--json`, `--jsonl`), as described in schemas/*.schema.json."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TextIO

from localgemma_cli.errors import IncompleteAnswer, LocalGemmaError
from localgemma_cli.events import TokenLogprob
from localgemma_cli.render.base import Answer

SCHEMA = 1
_IMPOSSIBLE = -9999.0  # as OpenAI writes a log-probability of minus infinity, which JSON has no number for
# Allowed in JSON, but able to control a terminal: DEL, C1, line separators, bidirectional controls.
_UNSAFE = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class RunInfo:
    """The fields that all answers of a process share; a server has no preset and no plan."""

    model: str
    preset: str | None
    backend: str
    load_seconds: float
    plan: Mapping[str, object] | None


def answer_object(run: RunInfo, answer: Answer) -> dict[str, object]:
    finished = answer.finished
    return {
        "schema": SCHEMA,
        "model": run.model,
        "preset": run.preset,
        "backend": run.backend,
        "thinking": answer.thinking or None,
        "response": answer.text,
        **({} if answer.parsed is None else {"parsed": answer.parsed.value}),
        **({} if finished.choices is None else {"choices": dict(finished.choices)}),
        "finish_reason": finished.finish_reason,
        "usage": asdict(finished.usage),
        "timing": {"load_seconds": run.load_seconds, **asdict(finished.timing)},
        "plan": run.plan,
        **({} if finished.logprobs is None else {"logprobs": logprobs_object(finished.logprobs)}),
    }


def logprobs_object(logprobs: Sequence[TokenLogprob]) -> dict[str, object]:
    """As in OpenAI's API, with the id of each token added."""
    return {"content": [_token_object(each) | {"top_logprobs": _top(each)} for each in logprobs]}


def _top(token: TokenLogprob) -> list[dict[str, object]]:
    return [_token_object(each) for each in token.top_logprobs]


def _token_object(token: TokenLogprob) -> dict[str, object]:
    logprob = max(token.logprob, _IMPOSSIBLE)
    return {"token": token.token, "id": token.id, "bytes": token.bytes, "logprob": logprob}


def error_object(error: LocalGemmaError) -> dict[str, object]:
    partial = {"partial": error.text} if isinstance(error, IncompleteAnswer) else {}
    return {"error": {"kind": error.kind, "message": error.message, "hint": error.hint, **partial}}


def write_line(stream: TextIO, value: Mapping[str, object]) -> None:
    stream.write(json_line(value, ascii_only=not _is_unicode(stream)))
    stream.flush()


def json_line(value: Mapping[str, object], *, ascii_only: bool = False) -> str:
    """An object on one line, without a character that could control a terminal."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


class JsonRenderer:
    """Writes one object when the answer is complete, so that stdout never has an incomplete one."""

    def __init__(self, stdout: TextIO, run: RunInfo) -> None:
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
    """Writes a start line, a line per piece of thinking or answer, and an end line: the `--json` object."""

    def __init__(self, stdout: TextIO, run: RunInfo) -> None:
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
