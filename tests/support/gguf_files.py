"""GGUF files of a small Gemma, as far as a header goes; and a hub of them for calls in this process."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from huggingface_hub import constants
from support.hub_server import HubServer

from localgemma_cli.models.hub import gguf as hub_gguf

_VALUES = {
    "context_length": 1024,
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 128,
    "head_count": 4,
    "head_count_kv": 2,
    "key_length": 16,
    "value_length": 16,
    "sliding_window": 32,
}


def gguf_bytes(folder: Path, *, words: int = 256, architecture: str = "gemma3", salt: int = 0) -> bytes:
    """A file with `words` tokens in its vocabulary; files of another `salt` differ."""
    path = folder / "written.gguf"
    writer = _writer(path, words, architecture, salt)
    _write(writer)
    return path.read_bytes()


def split_gguf_bytes(folder: Path, name: str) -> dict[str, bytes]:
    """The same as pieces of one tensor each, under the names that llama.cpp gives them."""
    writer = _writer(folder / f"{name}.gguf", 256, "gemma3", 0, split_max_tensors=1)
    _write(writer)
    return {path.name: path.read_bytes() for path in folder.glob(f"{name}-*-of-*.gguf")}


def _writer(path: Path, words: int, architecture: str, salt: int, **split: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture, **split)
    for name, value in _VALUES.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"word {index}" for index in range(words)])
    for name in ("token_embd", "output_norm", "blk.0.attn_q"):
        writer.add_tensor(f"{name}.weight", np.full((256, 64), salt, np.float32))
    return writer


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def use_hub(hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the client in this process to the hub and to an own cache folder, without a token."""
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    values: Mapping[str, object] = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("PATIENCE_SECONDS", "PATIENCE_WITH_A_COPY_SECONDS"):
        monkeypatch.setattr(hub_gguf, name, 240.0)  # the hub of a test runs on a busy machine
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
