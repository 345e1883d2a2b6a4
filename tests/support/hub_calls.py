"""Calls of hub.py in a process of their own, as the client reads its environment once, at import."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ID = "google/gemma-2-2b-it"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()
WEIGHTS = {SHARDS[0]: os.urandom(2_000_000), SHARDS[1]: os.urandom(1_000_000)}
SMALL = {
    "config.json": b'{"model_type": "gemma2"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer.model": b"pieces",
    "chat_template.jinja": b"{{ bos_token }}",
    "model.safetensors.index.json": INDEX,
}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "model.pt": b"pickle",
    "model.gguf": b"gguf",
    "modeling.py": b"raise SystemExit",
    "README.md": b"# Gemma",
    "original/model.safetensors": b"another form",
}
FILES = {**SMALL, **WEIGHTS, **UNWANTED}
LOADED = {*SMALL, *WEIGHTS}

CHILD = """
import json, sys
from localgemma_cli.models.hub import client as hub
from localgemma_cli.errors import LocalGemmaError

hub.PATIENCE_SECONDS = hub.PATIENCE_WITH_A_COPY_SECONDS = 240.0  # the hub of a test runs on a busy machine
outcomes = []
for call, kwargs in json.loads(sys.argv[1]):
    seen, result, error = [], None, None
    progress = {"progress": lambda p: seen.append([p.stage, p.done, p.total])}
    progress = progress if call == "fetch_snapshot" else {}
    try:
        result = getattr(hub, call)(**kwargs, **progress)
    except LocalGemmaError as e:
        error = {"type": type(e).__name__, "message": e.message, "hint": e.hint}
    outcomes.append({"result": result, "error": error, "seen": seen})
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(json.dumps(outcomes, default=str))
"""


@dataclass(frozen=True)
class Outcome:
    result: Any
    error: dict[str, str] | None
    seen: list[tuple[str, int, int | None]]

    @property
    def path(self) -> Path:
        assert self.error is None, self.error
        assert isinstance(self.result, str)
        return Path(self.result)

    def failed(self, kind: str, *words: str) -> dict[str, str]:
        """The error, after a look at the form that all of them keep."""
        assert self.error is not None
        assert self.error["type"] == kind, self.error
        said = self.error["message"] + "\n" + self.error["hint"]
        assert said.count("\n") == 1
        assert said.replace("\n", "").isprintable()
        for word in words:
            assert word in said, said
        return self.error


Call = tuple[str, dict[str, Any]]


def a_call(call: str = "fetch_snapshot", **kwargs: Any) -> Call:
    offline = {} if call == "cached_snapshot" else {"offline": False}
    return call, {"model_id": ID, "revision": None, **offline, **kwargs}


def start(env: dict[str, str], *calls: Call, before: str = "") -> subprocess.Popen[str]:
    """A process that makes these calls, one `fetch` if none is named, and prints what came of them."""
    arguments = [sys.executable, "-c", before + CHILD, json.dumps(calls or [a_call()])]
    return subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str], env: dict[str, str]) -> list[Outcome]:
    out, err = child.communicate(timeout=600)
    assert err == "", err
    assert out.count("\n") == 1, out
    if "HF_TOKEN" in env:
        assert env["HF_TOKEN"] not in out
    return [Outcome(o["result"], o["error"], [tuple(step) for step in o["seen"]]) for o in json.loads(out)]


def run_all(env: dict[str, str], *calls: Call) -> list[Outcome]:
    return finish(start(env, *calls), env)


def run(env: dict[str, str], call: str = "fetch_snapshot", **kwargs: Any) -> Outcome:
    return run_all(env, a_call(call, **kwargs))[0]


def names_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def partials(home: Path) -> list[Path]:
    return [p for p in home.rglob("*.incomplete") if size_of(p)]


def size_of(path: Path) -> int:
    """In bytes; 0 for what has just gone."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
