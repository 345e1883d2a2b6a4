"""A real server: `transformers serve` with the bundled model, as this program and OpenAI's client see it."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.models import DEMO
from support.program import COMMAND, Program

QUESTION = "What is the memory preset?"
GREEDY = ("--temperature", "0")


@dataclass(frozen=True)
class Served:
    url: str
    process: subprocess.Popen[bytes]


def start(folder: Path) -> Served:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    (folder / "hub").mkdir()
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "transformers"), "serve", str(DEMO), *where],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    served = Served(f"http://127.0.0.1:{port}", process)
    deadline = time.monotonic() + 900
    while not healthy(served.url):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.2)
    return served


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = start(tmp_path_factory.mktemp("serve"))
    yield running
    running.process.kill()
    running.process.wait()


def test_the_answer_is_the_local_model_s_own(program: Program, served: Served) -> None:
    local = program("-m", "demo", "--preset", "exact", "--dtype", "float32", *GREEDY, QUESTION, stdin="")
    remote = program("--endpoint", served.url, *GREEDY, QUESTION, stdin="")
    assert (remote.returncode, remote.stderr) == (0, "")
    assert len(local.stdout) > 40
    assert remote.stdout == local.stdout


def test_what_it_refuses_is_left_out_with_a_word(program: Program, served: Served) -> None:
    system = ("-s", "Talk like a pirate.")
    more = ("--top-k", "5", "--min-p", "0.1", "--repetition-penalty", "1.5", "--seed", "3")
    remote = program("--endpoint", served.url, *GREEDY, *system, *more, QUESTION, stdin="")
    exact = ("-m", "demo", "--preset", "exact", "--dtype", "float32")
    local = program(*exact, *GREEDY, *system, QUESTION, stdin="")
    assert remote.returncode == 0
    assert remote.stdout == local.stdout
    options, folded = remote.stderr.splitlines()
    assert "top_k, min_p, repetition_penalty" in options
    assert "system message" in folded


def test_openai_s_client_reads_the_same(program: Program, served: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    stream = client.chat.completions.create(
        model=str(DEMO), messages=[{"role": "user", "content": QUESTION}], temperature=0, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    remote = program("--endpoint", f"{served.url}/v1/", "-m", str(DEMO), *GREEDY, QUESTION, stdin="")
    assert remote.stdout == text.rstrip("\n") + "\n"


def test_another_model_than_the_served_one_is_refused_in_its_words(program: Program, served: Served) -> None:
    done = program("--endpoint", served.url, "-m", "other", "Hello", stdin="")
    assert done.returncode == 7
    assert "requested 'other'" in done.stderr


def test_a_server_killed_in_the_answer(program: Program, tmp_path: Path) -> None:
    served = start(tmp_path)
    rambling = ["--temperature", "20", "--seed", "3"]
    process = subprocess.Popen(
        [*COMMAND, "--endpoint", served.url, *rambling, "Hello"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=program.folder,
        env=program.env,
    )
    assert process.stdout is not None
    first = process.stdout.read(20)
    served.process.kill()
    served.process.wait()
    rest, errors = process.communicate(timeout=600)
    assert len(first) > 0
    assert (first + rest).endswith(b"\n")
    assert b"The answer is incomplete." in errors
    assert process.returncode == 7
