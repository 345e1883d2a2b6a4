"""Weights in forms that are not loaded are named, with what to take instead, before anything is planned."""

import json
from pathlib import Path

import pytest
from support.hub_server import HubServer
from support.models import DEMO
from support.program import Program

from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.model_config import stored_format_of
from localgemma_cli.models.resolve import resolve
from localgemma_cli.models.unsupported_formats import is_adapter, refuse_unsupported_formats

FILES = {
    "m-Q4_K_M.gguf": "GGUF",
    "model.onnx": "ONNX",
    "openvino_model.bin": "OpenVINO",
    "gemma2-2b-it.litertlm": "LiteRT",
    "tf_model.h5": "TensorFlow",
    "model.weights.h5": "Keras",
    "flax_model.msgpack": "Flax",
    "2b-it-sfp.sbs": "gemma.cpp",
    "weights.npz": "MLX",
    "gemma-w8a8.rkllm": "--endpoint",
    "pytorch_model-00001-of-00002.bin": "pickle files can run code",
    "model.ckpt": "pickle files can run code",
}


@pytest.mark.parametrize("name", FILES)
def test_each_is_named_on_the_hub_and_on_disk(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        refuse_unsupported_formats(["config.json", "README.md", name], "org/m")
    assert FILES[name] in f"{caught.value.message} {caught.value.hint}"
    (tmp_path / "config.json").write_bytes((DEMO / "config.json").read_bytes())
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(NotFoundError) as caught:
        resolve(str(tmp_path), revision=None, offline=True)
    assert "\n" not in caught.value.message
    refuse_unsupported_formats(["config.json", "model.safetensors", name], "org/m")


def test_packed_safetensors_are_named_too() -> None:
    for name, what in {"quantize_config.json": "GPTQ", "hf_quant_config.json": "ModelOpt"}.items():
        with pytest.raises(NotFoundError, match=what):
            refuse_unsupported_formats(["model.safetensors", name], "org/m")


@pytest.mark.parametrize(
    "form",
    [
        {"quantization": {"group_size": 64, "bits": 4}},
        {"quantization": {"group_size": 64, "bits": 4, "mode": "affine", "lm_head": {"bits": 8}}},
        {"quantization_config": {"group_size": 32, "bits": 8}},
    ],
)
def test_mlx_is_refused_by_its_config(form: dict[str, object]) -> None:
    with pytest.raises(NotFoundError, match="MLX"):
        stored_format_of(form, "mine")
    assert stored_format_of({"quantization": None}, "mine") is None


@pytest.mark.parametrize(
    "method", ["gptq", "exl2", "hqq", "fp8", "mxfp4", "torchao", "quanto", "bitnet", "modelopt"]
)
def test_other_methods_are_refused_by_name(method: str) -> None:
    with pytest.raises(NotFoundError, match=method) as caught:
        stored_format_of(
            {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 64}}, "mine"
        )
    assert "unquantized" in caught.value.hint


def test_an_adapter_is_told_from_a_whole_model() -> None:
    adapter = ["adapter_config.json", "adapter_model.safetensors", "config.json"]
    assert is_adapter(adapter)
    assert not is_adapter([*adapter, "model.safetensors"])
    assert not is_adapter([*adapter, "model.safetensors.index.json"])
    refuse_unsupported_formats([*adapter, "training_args.bin"], "org/a")


def test_the_program_refuses_before_it_plans(tmp_path: Path) -> None:
    config = (DEMO / "config.json").read_bytes()
    onnx = {"README.md": b"x", "model.onnx": b"\0" * 99}
    mlx = json.dumps({**json.loads(config), "quantization": {"group_size": 64, "bits": 4}}).encode()
    whole = {"tokenizer.json": b"{}", "model.safetensors": b"x" * 99}
    repos = {
        "org/o": {"config.json": config, **onnx},
        "org/only": onnx,
        "org/mlx": {"config.json": mlx, **whole},
    }
    with HubServer(repos) as hub:
        program = Program(tmp_path, hub.environment(tmp_path))
        for words, what in {
            ("models", "pull", "org/o"): "ONNX",
            ("plan", "-m", "org/only"): "ONNX",
            ("-m", "org/only:Q4_K_M", "hi"): "no GGUF files",
            ("plan", "-m", "org/mlx"): "MLX",
        }.items():
            done = program(*words)
            assert (done.returncode, done.stdout) == (4, ""), done.stderr
            assert what in done.stderr
            assert len(done.stderr.splitlines()) == 2, done.stderr
            assert "fits" not in done.stderr
        assert not any(path.endswith((".onnx", ".safetensors")) for path in map(str, hub.requests))
