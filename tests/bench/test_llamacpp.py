"""The row of llama.cpp, on a GGUF file with the same random weights as the other rows have."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support.checkpoint_to_gguf import convert_checkpoint, quantize
from support.models import DEMO

from localgemma_cli.bench import llamacpp, random_weights, reference
from localgemma_cli.bench.job import Job, Workload
from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.resolve import resolve
from localgemma_cli.planning.hardware import probe
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import load_presets

pytest.importorskip("xllamacpp")
FACTS = resolve("demo", revision=None, offline=True).facts
PLAN = make_plan(FACTS, "exact", probe("cpu"), Overrides(device="cpu", dtype="float32"), load_presets())
SHORT, LONG = Workload(10, 6), Workload(80, 24)  # the second goes past the demo's sliding window


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the demo's shape, with `f32.gguf` and `q4_0.gguf` beside it."""
    folder = tmp_path_factory.mktemp("dummy") / "model"
    random_weights.write_checkpoint(FACTS.architecture, folder, seed=0)
    config = json.loads((folder / "config.json").read_text())
    config["query_pre_attn_scalar"] = config["head_dim"]  # llama.cpp has no key for it
    (folder / "config.json").write_text(json.dumps(config))
    for kind in ("f32", "q4_0"):
        convert_checkpoint(folder, gguf.GGMLQuantizationType[kind.upper()], folder / f"{kind}.gguf")
    return folder


def job(weights: Path) -> Job:
    return Job("llama.cpp", PLAN, weights, DEMO, (SHORT, LONG), repeats=2)


def test_llama_cpp_is_asked_what_the_reference_is_asked(folder: Path) -> None:
    """The placeholder vocabulary spells each token's id, so that the text shows the tokens."""
    asked = job(folder / "f32.gguf")
    server = llamacpp._open(asked, folder / "f32.gguf")
    answered = reference.measure(replace(asked, engine="transformers", weights=folder)).answered
    for result in answered:
        answer: dict[str, Any] = {}
        server.handle_completions(llamacpp._request(asked, result.workload, 0), answer.update)
        assert answer["choices"][0]["text"] == "".join(f" w{token}" for token in result.token_ids)
        assert len(set(result.token_ids)) > 2  # or equal tokens would prove little


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
def test_times_sizes_and_peaks_are_measured(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "others_share", lambda *_: 0.25)
    path = folder / f"{kind}.gguf"
    measured = llamacpp.measure(job(path))
    assert [each.workload for each in measured.answered] == [SHORT, LONG]
    for each in measured.answered:
        assert min(each.first_token_seconds, each.decode_tokens_per_second) > 0
        assert each.peaks.host_bytes > measured.loaded.weights_bytes
        assert each.others_share == 0.25
    assert measured.loaded.seconds > 0
    assert measured.read_bytes == measured.loaded.weights_bytes == path.stat().st_size


def test_a_file_that_llama_cpp_refuses_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(NotFoundError, match=r"broken\.gguf"):
        llamacpp.measure(job(broken))


def test_q6_k_is_read_back_within_its_step() -> None:
    weights = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)
    weights[0, :256] = 0
    kind = gguf.GGMLQuantizationType.Q6_K
    back = gguf.dequantize(quantize(weights, kind), kind).reshape(weights.shape)
    assert np.abs(back - weights).max() < np.abs(weights).max() / 31
    assert np.sqrt(np.mean((back - weights) ** 2)) < 0.03
    assert not back[0, :256].any()
